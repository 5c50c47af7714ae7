package verify_test

import (
	"os"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/verify"
)

// ggufMerge is a base, an adapter of rank 4 and the values of their merge, one weight of
// 64 rows, or of as many matrices of 64 rows.
type ggufMerge struct {
	t             *testing.T
	base, b, a    []float64
	adapter, path string
}

const ggufRows, ggufCols, ggufRank = 64, 256, 4

func newGGUFMerge(t *testing.T) *ggufMerge {
	f := &fixture{t: t, values: make(map[string][]float64)}
	f.add("w", tensor.F32, ggufRows, ggufCols)
	f.add("a", tensor.F32, ggufRank, ggufCols)
	f.add("b", tensor.F32, ggufRows, ggufRank)
	m := &ggufMerge{t: t, base: f.values["w"], a: f.values["a"], b: f.values["b"]}
	m.adapter = writeGGUF(t, "lora.gguf", adapter.GGUFKeys("novel", ggufRank),
		ggufTensor{"blk.0.ffn_up.weight.lora_a", "f32", ggufRank, narrow(m.a)},
		ggufTensor{"blk.0.ffn_up.weight.lora_b", "f32", ggufRows, narrow(m.b)})
	m.path = ggufWeight(t, "f32", narrow(m.base))
	return m
}

func narrow(x []float64) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = float32(v)
	}
	return y
}

// at is W + scale·B·A of the rows from first on, W elsewhere.
func (m *ggufMerge) at(scale float64, first int) []float32 {
	x := slices.Clone(m.base)
	for r := first; r < ggufRows; r++ {
		for k := range ggufRank {
			for c := range ggufCols {
				x[r*ggufCols+c] += scale * m.b[r*ggufRank+k] * m.a[k*ggufCols+c]
			}
		}
	}
	return narrow(x)
}

// find verifies a merge.
func (m *ggufMerge) find(merged string) []string {
	m.t.Helper()
	r, err := verify.Merged(m.t.Context(), openPath(m.t, m.path), []merge.Source{source(m.t, m.adapter, 1)}, merge.Options{}, openPath(m.t, merged), verify.Options{})
	if err != nil {
		m.t.Fatal(err)
	}
	var list []string
	for _, code := range found(r) {
		if code != "family-unknown" && code != "merge-dtype" {
			list = append(list, code)
		}
	}
	return list
}

// TestMergedCodes compares merges that are stored in blocks: what the encoder makes of the
// exact merge has no finding, every multiple of the change has its own, and so have a bit
// of a block and the codes of another encoder.
func TestMergedCodes(t *testing.T) {
	for _, kind := range []string{"q8_0", "q4_0", "q5_1", "q2_K", "q3_K", "q4_K", "q6_K", "iq4_nl", "iq4_xs", "iq3_s"} {
		t.Run(kind, func(t *testing.T) {
			m := newGGUFMerge(t)
			const name = " blk.0.ffn_up.weight"
			write := func(values []float32) string { return ggufWeight(t, kind, values) }
			for _, c := range []struct {
				name string
				path string
				want []string
			}{
				{"the merge", write(m.at(1, 0)), nil},
				{"the base", write(m.at(0, 0)), []string{"adapter-missing", "delta-missing" + name}},
				{"twice", write(m.at(2, 0)), []string{"delta-scale" + name}},
				{"subtracted", write(m.at(-1, 0)), []string{"delta-scale" + name}},
				{"by a third", write(m.at(1.0/3, 0)), []string{"delta-scale" + name}},
				{"another model", write(narrow(reversed(m.base))), []string{"deviates" + name}},
				{"one bit", flipped(t, write(m.at(1, 0))), []string{"block-differs" + name}},
			} {
				got := m.find(c.path)
				got = slices.DeleteFunc(got, func(code string) bool { return code == "delta-survival"+name })
				if !slices.Equal(got, c.want) {
					t.Errorf("%s: found %q, want %q", c.name, got, c.want)
				}
			}
		})
	}
	// Values on a grid of halves of steps are not what the encoder makes of the merge, but
	// as near.
	m := newGGUFMerge(t)
	x := m.at(1, 0)
	for i := range x {
		x[i] *= 1 + 0x1p-9*float32(i%3-1)
	}
	if got, want := m.find(ggufWeight(t, "q8_0", x)), []string{"encoder-other blk.0.ffn_up.weight"}; !slices.Equal(got, want) {
		t.Errorf("values beside the merge: found %q, want %q", got, want)
	}
}

func reversed(x []float64) []float64 {
	x = slices.Clone(x)
	slices.Reverse(x)
	return x
}

// flipped changes the lowest bit of a code in the last block of a file.
func flipped(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-40] ^= 1
	path += "-flipped.gguf"
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}
