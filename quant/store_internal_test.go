package quant

import (
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/workfolder"
	"github.com/loratool/loratool/quant/loftq"
)

// kept is a store with a pair of rank 2 for a weight of 3 x 4, and the bytes of it.
func kept(t testing.TB, change func(*finding)) (*Store, *pairing, []byte) {
	t.Helper()
	s := &Store{key: "0123456789abcdef0123"}
	var err error
	if s.Folder, err = workfolder.Open(fsatomic.OS{}, filepath.Join(t.TempDir(), "a"), s.key, false); err != nil {
		t.Fatal(err)
	}
	p := &pairing{target: &target{shape: tensor.Shape{3, 4}}, name: "m", rank: 2}
	f := &finding{
		plain: loftq.Errors{Plain: 0.5, Weighted: 0.4}, repaired: loftq.Errors{Plain: 0.25, Weighted: 0.2}, best: 2, kept: 3, made: 5, absmax: 7, norm: 9,
		pair:  loftq.Factors{B: linalg.NewMatrix(3, 2, []float32{1, 2, 3, 4, 5, 6}), A: linalg.NewMatrix(2, 4, []float32{1, 2, 3, 4, 5, 6, 7, 8})},
		shift: loftq.Factors{B: linalg.NewMatrix(3, 2, nil), A: linalg.NewMatrix(2, 4, []float32{8, 7, 6, 5, 4, 3, 2, 1})},
	}
	change(f)
	if err := s.keep(p, f); err != nil {
		t.Fatal(err)
	}
	data, err := s.Read(p.fileName())
	if err != nil {
		t.Fatal(err)
	}
	return s, p, data
}

// TestStoreEntry guards that what is kept is found again, and that what does not fit the
// weight, the figures or the key is refused.
func TestStoreEntry(t *testing.T) {
	s, p, data := kept(t, func(*finding) {})
	f, err := s.parse(p, data)
	if err != nil {
		t.Fatal(err)
	}
	if f.plain.Weighted != 0.4 || f.repaired.Plain != 0.25 || f.best != 2 || f.kept != 3 || f.made != 5 || f.absmax != 7 || f.norm != 9 ||
		f.pair.B.At(2, 1) != 6 || f.pair.A.At(1, 3) != 8 || f.shift.A.At(0, 0) != 8 || f.shift.Rank() != 2 {
		t.Errorf("%+v", f)
	}
	for name, c := range map[string]struct {
		change func(*finding)
		key    func(*Store, *pairing)
	}{
		"A of another width":   {change: func(f *finding) { f.pair.A = linalg.NewMatrix(2, 5, nil) }},
		"B of another height":  {change: func(f *finding) { f.pair.B = linalg.NewMatrix(4, 2, nil) }},
		"another rank":         {change: func(f *finding) { f.pair.A = linalg.NewMatrix(3, 4, nil) }},
		"a shift too narrow":   {change: func(f *finding) { f.shift.B = linalg.NewMatrix(3, 1, nil) }},
		"an infinite factor":   {change: func(f *finding) { f.pair.A.Data[3] /= 0 * f.pair.A.Data[3] }},
		"an iterate never run": {change: func(f *finding) { f.kept = 6 }},
		"a negative one":       {change: func(f *finding) { f.kept = -1 }},
		"nan":                  {change: func(f *finding) { f.norm *= 0; f.norm /= f.norm }},
		"another key":          {key: func(s *Store, _ *pairing) { s.key += "x" }},
		"another weight":       {key: func(_ *Store, p *pairing) { p.name = "n" }},
	} {
		if c.change == nil {
			c.change = func(*finding) {}
		}
		s, p, data := kept(t, c.change)
		if c.key != nil {
			c.key(s, p)
		}
		if f, err := s.parse(p, data); err == nil {
			t.Errorf("%s: accepted as %+v", name, f)
		}
	}
}

// FuzzStoreEntry guards that a file in the place of a pair, whatever it holds, is refused
// or read as a pair that fits the weight.
func FuzzStoreEntry(f *testing.F) {
	s, p, data := kept(f, func(*finding) {})
	f.Add(data)
	f.Add(data[:40])
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := s.parse(p, data)
		if err != nil {
			return
		}
		for _, pair := range []loftq.Factors{found.pair, found.shift} {
			if pair.Rank() > 0 {
				loftq.Shifted(make([]float32, 12), make([]float32, 12), 3, 4, pair, 1) // panics if it does not fit
			}
		}
		if found.pair.Rank() != 2 {
			t.Errorf("a pair of rank %d", found.pair.Rank())
		}
	})
}
