package checkpoint

import (
	"testing"

	"github.com/loratool/loratool/formats/tensor"
)

// TestGrid has the table of how scales may spread over an FP8 tensor.
func TestGrid(t *testing.T) {
	type shape = tensor.Shape
	one := func(rows, cols int64) *grid { return &grid{cols, rows, cols, rows} }
	for _, c := range []struct {
		name   string
		w, s   shape
		config [2]int64 // weight_block_size
		want   *grid
	}{
		{"scalar", shape{6, 4}, nil, [2]int64{}, one(6, 4)},
		{"one element", shape{6, 4}, shape{1}, [2]int64{}, one(6, 4)},
		{"one element of two dimensions", shape{6, 4}, shape{1, 1}, [2]int64{}, one(6, 4)},
		{"rows", shape{6, 4}, shape{6}, [2]int64{}, &grid{4, 1, 4, 6}},
		{"rows and a one", shape{6, 4}, shape{6, 1}, [2]int64{}, &grid{4, 1, 4, 6}},
		{"columns are no rows", shape{6, 4}, shape{4}, [2]int64{}, nil},
		{"a one and rows", shape{6, 4}, shape{1, 6}, [2]int64{}, nil},
		{"config's blocks", shape{6, 8}, shape{2, 2}, [2]int64{4, 6}, &grid{8, 4, 6, 6}},
		{"config's blocks do not fit", shape{8, 8}, shape{2, 2}, [2]int64{2, 2}, &grid{8, 4, 4, 8}},
		{"128 without a config", shape{300, 200}, shape{3, 2}, [2]int64{}, &grid{200, 128, 128, 300}},
		{"128 by 128 has one block", shape{100, 100}, shape{1, 1}, [2]int64{}, one(100, 100)},
		{"even blocks", shape{512, 64}, shape{2, 4}, [2]int64{}, &grid{64, 256, 16, 512}},
		{"groups of a row", shape{6, 64}, shape{6, 4}, [2]int64{}, &grid{64, 1, 16, 6}},
		{"blocks with a rest could have any size", shape{301, 64}, shape{2, 1}, [2]int64{}, nil},
		{"blocks of 150 could be blocks of 256", shape{300, 64}, shape{2, 1}, [2]int64{}, nil},
		{"the config's blocks before those of 128", shape{200, 64}, shape{2, 1}, [2]int64{100, 64}, &grid{64, 100, 64, 200}},
		{"uneven blocks of the config", shape{300, 64}, shape{2, 1}, [2]int64{256, 64}, &grid{64, 256, 64, 300}},
		{"no blocks", shape{6, 4}, shape{0, 2}, [2]int64{}, nil},
		{"more blocks than rows", shape{2, 4}, shape{3, 1}, [2]int64{}, nil},
		{"three dimensions for two", shape{6, 4}, shape{2, 2, 1}, [2]int64{}, nil},
		{"no rows", shape{0, 4}, shape{1}, [2]int64{}, nil},
		{"no columns", shape{4, 0}, shape{1}, [2]int64{}, nil},
		{"vector", shape{5}, nil, [2]int64{}, one(5, 1)},
		{"vector, each its own", shape{5}, shape{5}, [2]int64{}, &grid{1, 1, 1, 5}},
		{"vector in blocks", shape{256}, shape{2}, [2]int64{}, nil},
		{"scalar weight", nil, nil, [2]int64{}, one(1, 1)},
		{"stack, one for all", shape{3, 6, 4}, shape{1}, [2]int64{}, one(18, 4)},
		{"stack, one each", shape{3, 6, 4}, shape{3}, [2]int64{}, one(6, 4)},
		{"stack, one each and ones", shape{3, 6, 4}, shape{3, 1, 1}, [2]int64{}, one(6, 4)},
		{"stack, rows", shape{3, 6, 4}, shape{3, 6}, [2]int64{}, &grid{4, 1, 4, 6}},
		{"stack, rows and a one", shape{3, 6, 4}, shape{3, 6, 1}, [2]int64{}, &grid{4, 1, 4, 6}},
		{"stack, blocks", shape{3, 6, 8}, shape{3, 2, 2}, [2]int64{4, 6}, &grid{8, 4, 6, 6}},
		{"stack, scales of another number", shape{3, 6, 4}, shape{2, 6}, [2]int64{}, nil},
		{"stack of one", shape{1, 6, 4}, shape{1}, [2]int64{}, one(6, 4)},
		{"four dimensions", shape{2, 3, 4, 5}, shape{1}, [2]int64{}, nil},
		{"block size that overflows", shape{8, 8}, shape{2, 2}, [2]int64{1<<63 - 1, 1<<63 - 1}, &grid{8, 4, 4, 8}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := gridOf(c.w, c.s, c.config)
			if ok != (c.want != nil) || ok && got != *c.want {
				t.Errorf("got %+v, %v; want %+v", got, ok, c.want)
			}
		})
	}
}
