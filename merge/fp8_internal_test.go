package merge

import (
	"testing"

	"github.com/loratool/loratool/formats/tensor"
)

// TestScaleGeometry has the table of how scales may spread over an FP8 tensor.
func TestScaleGeometry(t *testing.T) {
	type shape = tensor.Shape
	one := func(rows, cols int64) *Dequantize { return &Dequantize{rows, cols, rows} }
	for _, c := range []struct {
		name   string
		w, s   shape
		config [2]int64 // weight_block_size
		want   *Dequantize
	}{
		{"scalar", shape{6, 4}, nil, [2]int64{}, one(6, 4)},
		{"one element", shape{6, 4}, shape{1}, [2]int64{}, one(6, 4)},
		{"one element of two dimensions", shape{6, 4}, shape{1, 1}, [2]int64{}, one(6, 4)},
		{"rows", shape{6, 4}, shape{6}, [2]int64{}, &Dequantize{1, 4, 6}},
		{"rows and a one", shape{6, 4}, shape{6, 1}, [2]int64{}, &Dequantize{1, 4, 6}},
		{"columns are no rows", shape{6, 4}, shape{4}, [2]int64{}, nil},
		{"a one and rows", shape{6, 4}, shape{1, 6}, [2]int64{}, nil},
		{"config's blocks", shape{6, 8}, shape{2, 2}, [2]int64{4, 6}, &Dequantize{4, 6, 6}},
		{"config's blocks do not fit", shape{8, 8}, shape{2, 2}, [2]int64{2, 2}, &Dequantize{4, 4, 8}},
		{"128 without a config", shape{300, 200}, shape{3, 2}, [2]int64{}, &Dequantize{128, 128, 300}},
		{"128 by 128 has one block", shape{100, 100}, shape{1, 1}, [2]int64{}, one(100, 100)},
		{"even blocks", shape{512, 64}, shape{2, 4}, [2]int64{}, &Dequantize{256, 16, 512}},
		{"groups of a row", shape{6, 64}, shape{6, 4}, [2]int64{}, &Dequantize{1, 16, 6}},
		{"blocks with a rest could have any size", shape{301, 64}, shape{2, 1}, [2]int64{}, nil},
		{"blocks of 150 could be blocks of 256", shape{300, 64}, shape{2, 1}, [2]int64{}, nil},
		{"uneven blocks of the config", shape{300, 64}, shape{2, 1}, [2]int64{256, 64}, &Dequantize{256, 64, 300}},
		{"no blocks", shape{6, 4}, shape{0, 2}, [2]int64{}, nil},
		{"more blocks than rows", shape{2, 4}, shape{3, 1}, [2]int64{}, nil},
		{"three dimensions for two", shape{6, 4}, shape{2, 2, 1}, [2]int64{}, nil},
		{"no rows", shape{0, 4}, shape{1}, [2]int64{}, nil},
		{"no columns", shape{4, 0}, shape{1}, [2]int64{}, nil},
		{"vector", shape{5}, nil, [2]int64{}, one(5, 1)},
		{"vector, each its own", shape{5}, shape{5}, [2]int64{}, &Dequantize{1, 1, 5}},
		{"vector in blocks", shape{256}, shape{2}, [2]int64{}, nil},
		{"scalar weight", nil, nil, [2]int64{}, one(1, 1)},
		{"stack, one for all", shape{3, 6, 4}, shape{1}, [2]int64{}, one(18, 4)},
		{"stack, one each", shape{3, 6, 4}, shape{3}, [2]int64{}, one(6, 4)},
		{"stack, one each and ones", shape{3, 6, 4}, shape{3, 1, 1}, [2]int64{}, one(6, 4)},
		{"stack, rows", shape{3, 6, 4}, shape{3, 6}, [2]int64{}, &Dequantize{1, 4, 6}},
		{"stack, rows and a one", shape{3, 6, 4}, shape{3, 6, 1}, [2]int64{}, &Dequantize{1, 4, 6}},
		{"stack, blocks", shape{3, 6, 8}, shape{3, 2, 2}, [2]int64{4, 6}, &Dequantize{4, 6, 6}},
		{"stack, scales of another number", shape{3, 6, 4}, shape{2, 6}, [2]int64{}, nil},
		{"stack of one", shape{1, 6, 4}, shape{1}, [2]int64{}, one(6, 4)},
		{"four dimensions", shape{2, 3, 4, 5}, shape{1}, [2]int64{}, nil},
		{"block size that overflows", shape{8, 8}, shape{2, 2}, [2]int64{1<<63 - 1, 1<<63 - 1}, &Dequantize{4, 4, 8}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := scaleGeometry(tensor.Spec{DType: tensor.F8E4M3, Shape: c.w}, tensor.Spec{DType: tensor.F32, Shape: c.s}, c.config)
			if ok != (c.want != nil) || ok && got != *c.want {
				t.Errorf("got %+v, %v; want %+v", got, ok, c.want)
			}
		})
	}
}

// TestAdditiveOps guards that every operation that readers call additive can
// take an adapter's weight.
func TestAdditiveOps(t *testing.T) {
	for _, op := range []weighted{
		AddLoRA{Scale: 2}, AddExpertsLoRA{Scale: 2}, AddAdaLoRA{Scale: 2}, AddLoHa{Scale: 2}, AddLoKr{Scale: 2},
		AddVeRA{Weight: 2}, AddVector{Scale: 2}, AddLoRADifference{Scale: 2, StartScale: 4},
	} {
		switch op := op.times(-0.5).(type) {
		case AddLoRA:
			check(t, op, op.Scale, -1)
		case AddExpertsLoRA:
			check(t, op, op.Scale, -1)
		case AddAdaLoRA:
			check(t, op, op.Scale, -1)
		case AddLoHa:
			check(t, op, op.Scale, -1)
		case AddLoKr:
			check(t, op, op.Scale, -1)
		case AddVeRA:
			check(t, op, op.Weight, -1)
		case AddVector:
			check(t, op, op.Scale, -1)
		case AddLoRADifference:
			check(t, op, op.Scale, -1)
			check(t, op, op.StartScale, -2)
		default:
			t.Errorf("%T is another operation", op)
		}
	}
}

func check(t *testing.T, op any, got, want float64) {
	t.Helper()
	if got != want {
		t.Errorf("%T: scale %v, want %v", op, got, want)
	}
}

func TestRegion(t *testing.T) {
	r := Region{At: 4, From: 10, Rows: 3}
	for _, c := range []struct {
		row          int64
		rows         int
		band, own, n int
	}{
		{0, 4, 0, 0, 0}, {0, 5, 4, 10, 1}, {4, 3, 0, 10, 3}, {5, 9, 0, 11, 2}, {6, 1, 0, 12, 1}, {7, 9, 0, 0, 0}, {0, 99, 4, 10, 3}, {3, 2, 1, 10, 1}, {5, 1, 0, 11, 1}, {5, 0, 0, 0, 0},
	} {
		if band, own, n := r.in(c.row, c.rows); band != c.band || own != c.own || n != c.n {
			t.Errorf("in(%d, %d) is %d, %d, %d; want %d, %d, %d", c.row, c.rows, band, own, n, c.band, c.own, c.n)
		}
	}
}
