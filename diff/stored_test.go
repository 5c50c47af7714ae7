package diff_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/diff"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
)

func openPath(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

const golden = "../testdata/golden"

// TestQuantizedModels guards that quantized tensors are compared as the numbers that
// bitsandbytes says they stand for, and that equal codes are equal.
func TestQuantizedModels(t *testing.T) {
	for _, name := range []string{"llama-nf4", "llama-nf4-double", "llama-fp4-storage", "llama-int8", "gpt2-nf4", "gpt2-int8"} {
		t.Run(name, func(t *testing.T) {
			quantized := openPath(t, filepath.Join(golden, "bnb", name))
			values := openPath(t, filepath.Join(golden, "bnb", name+".values.safetensors"))
			r := compare(t, quantized, values, diff.Options{})
			if r.All.Tensors != len(values.Specs()) || r.All.Differing != 0 || r.All.Changed != 0 {
				t.Errorf("%d of %d tensors compared, %d values are not those of bitsandbytes", r.All.Tensors, len(values.Specs()), r.All.Changed)
			}
			if !r.Different {
				t.Error("quantized and not quantized are the same")
			}
			r = compare(t, quantized, openPath(t, filepath.Join(golden, "bnb", name)), diff.Options{})
			if r.Different {
				t.Errorf("it differs from itself: %v", told(r))
			}
			if original := strings.SplitN(name, "-", 2)[0]; original == "llama" {
				r = compare(t, openPath(t, filepath.Join(golden, "bnb", original)), quantized, diff.Options{TensorsOnly: true, Limits: diff.Limits{Error: 0.2}})
				// The error of 4 bits on normal weights is near 0.1; of 8 near 0.01.
				if worst := r.All.Relative(); r.Different || !(worst > 0.001 && worst < 0.2) || r.All.Differing == 0 {
					t.Errorf("against the original: relative error %v, %d differ, %v", worst, r.All.Differing, told(r))
				}
			}
		})
	}
}

// TestBlocks guards GGUF in blocks: equal bytes are equal, one changed code is found and
// is as large as the change of the number it stands for; how files are split, and in
// which order, means nothing.
func TestBlocks(t *testing.T) {
	path := filepath.Join(golden, "gguf/models/llama/base-q8_0.gguf")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a := openPath(t, path)
	const name = "blk.0.ffn_down.weight"
	_, offset := a.Origin(name)
	const code = 2 + 5 // the sixth number of the first block of 32, behind the scale
	data[offset+code]++
	changed := filepath.Join(t.TempDir(), "changed.gguf")
	if err := os.WriteFile(changed, data, 0o666); err != nil {
		t.Fatal(err)
	}
	r := compare(t, a, openPath(t, changed), diff.Options{})
	if r.All.Tensors != len(a.Specs()) || r.All.Differing != 1 || r.All.Changed != 1 || !r.Different {
		t.Errorf("%d tensors, %d differ in %d values", r.All.Tensors, r.All.Differing, r.All.Changed)
	}
	for i := range r.Tensors {
		if got := &r.Tensors[i]; got.Name == name {
			scale := got.Figures.MaxDiff
			if got.Same || got.Worst != 5 || scale == 0 || got.WorstB-got.WorstA != scale {
				t.Errorf("element %d is %v and %v", got.Worst, got.WorstA, got.WorstB)
			}
			// What is equal has its norm all the same: |A-B| is one number's.
			x, y := got.Norms()
			if !(x > 10*scale && y > 10*scale) {
				t.Errorf("norms %v and %v for a difference of %v", x, y, scale)
			}
		} else if !got.Same {
			t.Errorf("%s differs", got.Name)
		}
	}
	if r := compare(t, a, openPath(t, path), diff.Options{}); r.Different {
		t.Errorf("it differs from itself: %v", told(r))
	}
	split := openPath(t, filepath.Join(golden, "gguf/models/split/tiny-00002-of-00004.gguf"))
	r = compare(t, split, a, diff.Options{Limits: diff.Limits{Error: 0.02}, TensorsOnly: true})
	// Q8_0 rounds to 1/254 of the largest of a block: for normal numbers, whose largest of
	// 32 is some 2 to 3 deviations, an error of 3/254/sqrt(3) = 0.007.
	if worst := r.All.Relative(); r.Different || !(worst > 0.002 && worst < 0.01) {
		t.Errorf("a split model in F16 and one in Q8_0 are %v apart; %v", worst, told(r))
	}
}
