package extract

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/nlpodyssey/safetensors"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/workfolder"
)

// fuzzItem is an item with factors of rank 2 of a 3 x 4 matrix, and its entry.
func fuzzItem(t testing.TB) (*Store, *item, finding, linalg.SVD) {
	t.Helper()
	it := &item{module: "m", param: "weight", role: Linear, shape: tensor.Shape{3, 4}, blocks: 1, out: 3, in: 4, solve: true}
	s := &Store{key: "0123456789abcdef0123", index: map[*item]int{it: 7}}
	output := filepath.Join(t.TempDir(), "out")
	first, err := workfolder.Open(fsatomic.OS{}, output, s.key, false)
	if err == nil {
		err = first.Write("of an earlier run", nil)
	}
	if err == nil {
		s.Folder, err = workfolder.Open(fsatomic.OS{}, output, s.key, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	svd := linalg.SVD{
		U: linalg.NewMatrix(3, 2, []float32{1, 0, 0, 1, 0, 0}), S: []float64{2, 1}, VT: linalg.NewMatrix(2, 4, []float32{1, 0, 0, 0, 0, 1, 0, 0}),
		Report: linalg.Report{Norm: math.Sqrt(5), Captured: 1, Excess: 1e-4, Converged: true},
	}
	f := finding{figures: figures{base: 3, delta: 5, changed: true}, spectra: []spectrum{spectrumOf(svd)}, rows: []int64{0, 2}}
	return s, it, f, svd
}

// FuzzEntry guards that a file in the place of an entry, whatever it holds, is
// either refused or read as an entry whose factors can be used.
func FuzzEntry(f *testing.F) {
	s, it, found, svd := fuzzItem(f)
	if err := s.keep(it, found, []linalg.SVD{svd}); err != nil {
		f.Fatal(err)
	}
	data, err := s.Read(s.name(it))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:20])
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := s.parse(it, data)
		if err != nil {
			return
		}
		if len(e.spectra) != 1 {
			t.Fatalf("%d spectra", len(e.spectra))
		}
		k := int64(len(e.spectra[0].values))
		for _, open := range []opener{openA(it, k+1, e.stack("VT")), openB(it, k+1, 1, e.stack("U"))} {
			src, err := open()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := src.ReadAt(make([]byte, 8*3*(k+1)), 0); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestEntry guards that what is kept is found again, and that figures which do not
// fit the item are refused.
func TestEntry(t *testing.T) {
	s, it, f, svd := fuzzItem(t)
	if err := s.keep(it, f, []linalg.SVD{svd}); err != nil {
		t.Fatal(err)
	}
	got, ok := s.find(it)
	if !ok || got.base != 3 || got.delta != 5 || !got.changed || got.rounding || len(got.rows) != 2 || got.rows[1] != 2 ||
		len(got.spectra) != 1 || got.spectra[0].values[1] != 1 || got.spectra[0].excess != 1e-4 {
		t.Errorf("%+v", got)
	}
	// The name of a file holds a part of the key only.
	other := *s
	other.key = s.key[:len(s.key)-1] + "x"
	if _, ok := other.find(it); ok {
		t.Error("an entry of another extraction is taken")
	}
	namesake := *it
	namesake.module = "n"
	s.index[&namesake] = s.index[it]
	if _, ok := s.find(&namesake); ok {
		t.Error("an entry of another item is taken")
	}
	if (*Store)(nil).keep(it, f, nil) != nil || (*Store)(nil).Close() != nil {
		t.Error("no store is not taken for one")
	}
	for name, change := range map[string]func(it *item, f *finding, d *linalg.SVD){
		"U of another height":  func(_ *item, _ *finding, d *linalg.SVD) { d.U = linalg.NewMatrix(4, 2, nil) },
		"VT of another width":  func(_ *item, _ *finding, d *linalg.SVD) { d.VT = linalg.NewMatrix(2, 5, nil) },
		"one value more":       func(_ *item, f *finding, _ *linalg.SVD) { f.spectra[0].values = []float64{1, 2, 3} },
		"more than there are":  func(_ *item, f *finding, _ *linalg.SVD) { f.spectra[0].values = make([]float64, 9) },
		"two spectra":          func(_ *item, f *finding, _ *linalg.SVD) { f.spectra = append(f.spectra, f.spectra[0]) },
		"none":                 func(_ *item, f *finding, _ *linalg.SVD) { f.spectra = nil },
		"nan":                  func(_ *item, f *finding, _ *linalg.SVD) { f.base = math.NaN() },
		"an infinite value":    func(_ *item, _ *finding, d *linalg.SVD) { d.S[0] = math.Inf(1) },
		"an infinite element":  func(_ *item, _ *finding, d *linalg.SVD) { d.U.Data[5] = float32(math.Inf(1)) },
		"a row beyond the end": func(_ *item, f *finding, _ *linalg.SVD) { f.rows = []int64{3} },
		"a negative row":       func(_ *item, f *finding, _ *linalg.SVD) { f.rows = []int64{-1} },
		"rows in disorder":     func(_ *item, f *finding, _ *linalg.SVD) { f.rows = []int64{2, 0} },
	} {
		s, it, f, svd := fuzzItem(t)
		change(it, &f, &svd)
		if err := s.keep(it, f, []linalg.SVD{svd}); err != nil {
			t.Fatal(err)
		}
		if got, ok := s.find(it); ok {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
	// The file is one that any reader of safetensors takes.
	data, err := os.ReadFile(filepath.Join(s.Dir(), "0123456789abcdef-000007.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := safetensors.Deserialize(data); err != nil {
		t.Error(err)
	}
}
