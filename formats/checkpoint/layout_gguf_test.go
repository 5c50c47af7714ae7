package checkpoint_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
)

// everyType returns one tensor of each type that GGUF has, small ones and one without
// elements among them, with an alignment of 64.
func everyType(t testing.TB) (*gguf.Metadata, []blob) {
	t.Helper()
	rng := rand.New(rand.NewPCG(6, 1))
	keys := new(gguf.Metadata)
	keys.Set("general.architecture", gguf.ValueOf("llama"))
	keys.Set(gguf.KeyAlignment, gguf.ValueOf(uint32(64)))
	keys.Set("hash", gguf.ValueOf("0000"))
	var blobs []blob
	for _, kind := range gguf.Types() {
		s := gguf.Spec{Name: "t." + kind.String(), Type: kind, Shape: []int64{1 + rng.Int64N(5), kind.BlockSize() * (1 + rng.Int64N(3))}}
		data := make([]byte, s.Size())
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		blobs = append(blobs, blob{s, data})
	}
	one := []byte{1, 2, 3, 4}
	blobs = append(blobs, blob{gguf.Spec{Name: "empty", Type: gguf.Q4K, Shape: []int64{0, 256}}, nil},
		blob{gguf.Spec{Name: "scalar", Type: gguf.F32}, one}, blob{gguf.Spec{Name: "last", Type: gguf.F32, Shape: []int64{1}}, one})
	return keys, blobs
}

func specsOf(blobs []blob) []gguf.Spec {
	specs := make([]gguf.Spec, len(blobs))
	for i, b := range blobs {
		specs[i] = b.Spec
	}
	return specs
}

// writePieces writes every tensor in pieces, all of them in any order, as the engine
// may.
func writePieces(t *testing.T, l *checkpoint.Layout, blobs []blob, final map[string]string) error {
	t.Helper()
	sink, err := checkpoint.Create(fsatomic.OS{}, l, false)
	if err != nil {
		return err
	}
	type piece struct {
		name string
		data []byte
		off  int
	}
	var pieces []piece
	for _, b := range blobs {
		for off := 0; off < len(b.data); off += 37 {
			pieces = append(pieces, piece{b.Name, b.data[off:min(off+37, len(b.data))], off})
		}
	}
	rng := rand.New(rand.NewPCG(6, 2))
	rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	for _, p := range pieces {
		if err := sink.WriteAt(p.name, p.data, int64(p.off)); err != nil {
			t.Fatal(err)
		}
	}
	return sink.Commit(final)
}

// written is a layout as its own package writes it.
func written(t *testing.T, l *gguf.Layout, blobs []blob) []byte {
	t.Helper()
	var file bytes.Buffer
	err := l.Write(&file, func(s gguf.Tensor) (io.Reader, error) {
		i := slices.IndexFunc(blobs, func(b blob) bool { return b.Name == s.Name })
		return bytes.NewReader(blobs[i].data), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// A file written by a sink is what the format's package writes, whatever the types,
// with the text that was known at the end only.
func TestGGUFLayoutOneFile(t *testing.T) {
	keys, blobs := everyType(t)
	path := filepath.Join(t.TempDir(), "out.gguf")
	l, err := checkpoint.NewGGUFLayout(path, specsOf(blobs), keys, checkpoint.GGUFOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := writePieces(t, l, blobs, map[string]string{"hash": "beef"}); err != nil {
		t.Fatal(err)
	}
	keys.Replace("hash", gguf.ValueOf("beef"))
	want, err := gguf.NewLayout(keys, specsOf(blobs), gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(must(os.ReadFile(path)), written(t, want, blobs)) {
		t.Error("the file differs")
	}
	if got := l.Files[0].GGUF().Tensors(); !slices.EqualFunc(got, want.Tensors(), func(a, b gguf.Tensor) bool {
		return a.Name == b.Name && a.Type == b.Type && a.Offset == b.Offset && slices.Equal(a.Shape, b.Shape)
	}) {
		t.Errorf("tensors %v", got)
	}
}

// Reading the stored tensors of a model and writing them gives its file back.
func TestGGUFStoredRoundTrip(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(goldenGGUF, "models", "*", "*.gguf"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		if strings.Contains(path, "-of-") {
			continue // one of several, which open as one model
		}
		m := mustOpen(t, path, hfrepo.Cache{})
		stored := m.Stored()
		var blobs []blob
		for _, s := range stored.Specs() {
			g, _ := m.GGUF().Lookup(s.Name)
			r, err := stored.Open(s.Name)
			if err != nil {
				t.Fatal(err)
			}
			data := must(io.ReadAll(io.NewSectionReader(r, 0, s.Size())))
			if int64(len(data)) != g.Size() {
				t.Fatalf("%s: %q has %d bytes, want %d", path, s.Name, len(data), g.Size())
			}
			blobs = append(blobs, blob{g.Spec, data})
		}
		if _, err := stored.Open("nothing"); err == nil {
			t.Error("a tensor that is not there is opened")
		}
		out := filepath.Join(t.TempDir(), "out.gguf")
		l, err := checkpoint.NewGGUFLayout(out, specsOf(blobs), m.GGUF().Files()[0].Metadata(), checkpoint.GGUFOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := writePieces(t, l, blobs, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(must(os.ReadFile(out)), must(os.ReadFile(path))) {
			t.Errorf("%s: the copy differs", path)
		}
	}
}

// Split models are folders that open as one model again.
func TestGGUFLayoutSplit(t *testing.T) {
	keys, blobs := everyType(t)
	specs := specsOf(blobs)
	for name, o := range map[string]checkpoint.GGUFOptions{
		"by count": {Split: &gguf.SplitOptions{MaxTensors: 7}},
		"by size":  {Split: &gguf.SplitOptions{MaxBytes: 3000, FirstEmpty: true}},
		"kept":     {Counts: []int{0, 3, len(specs) - 5, 2}},
		"one":      {Counts: []int{len(specs)}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "model")
			l, err := checkpoint.NewGGUFLayout(dir, specs, keys, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := writePieces(t, l, blobs, map[string]string{"hash": "beef"}); err != nil {
				t.Fatal(err)
			}
			final := keys.Clone()
			final.Replace("hash", gguf.ValueOf("beef"))
			var want []*gguf.Layout
			if o.Split != nil {
				want, err = gguf.Split(final, specs, *o.Split, gguf.LayoutOptions{})
			} else {
				want, err = gguf.Distribute(final, specs, o.Counts, gguf.LayoutOptions{})
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range want {
				path := filepath.Join(dir, fmt.Sprintf("model-%05d-of-%05d.gguf", i+1, len(want)))
				if !bytes.Equal(must(os.ReadFile(path)), written(t, w, blobs)) {
					t.Errorf("%s differs", path)
				}
			}
			f, err := gguf.OpenSet(dir) // some of the types can't be opened as weights
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got := len(f.Tensors()); got != len(specs) || len(f.Files()) != len(want) {
				t.Errorf("%d tensors in %d files", got, len(f.Files()))
			}
		})
	}
}

func TestGGUFLayoutRefuses(t *testing.T) {
	keys, blobs := everyType(t)
	specs := specsOf(blobs)
	split := &gguf.SplitOptions{MaxTensors: 2}
	for name, c := range map[string]struct {
		path  string
		specs []gguf.Spec
		o     checkpoint.GGUFOptions
		want  string
	}{
		"folder for one":  {"out", specs, checkpoint.GGUFOptions{}, "a split model is a folder"},
		"file for many":   {"out.gguf", specs, checkpoint.GGUFOptions{Split: split}, "a split model is a folder"},
		"both":            {"out", specs, checkpoint.GGUFOptions{Split: split, Counts: []int{1}}, "both set"},
		"twice":           {"out.gguf", []gguf.Spec{specs[0], specs[0]}, checkpoint.GGUFOptions{}, "declared twice"},
		"twice in two":    {"out", []gguf.Spec{specs[0], specs[0]}, checkpoint.GGUFOptions{Counts: []int{1, 1}}, "declared twice"},
		"too few counted": {"out", specs, checkpoint.GGUFOptions{Counts: []int{1, 2}}, "are in none of the 2 files"},
		"too many":        {"out", specs, checkpoint.GGUFOptions{Counts: []int{1, len(specs)}}, "are left"},
		"negative":        {"out", specs, checkpoint.GGUFOptions{Counts: []int{-1, len(specs) + 1}}, "are left"},
		"no files":        {"out", nil, checkpoint.GGUFOptions{Counts: []int{}}, "0 files"},
		"no block": {"out.gguf", []gguf.Spec{{Name: "a", Type: gguf.Q4K, Shape: []int64{2, 128}}}, checkpoint.GGUFOptions{},
			"not whole blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := checkpoint.NewGGUFLayout(c.path, c.specs, keys, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// What is known at the end must have been declared, as text of the same length, and
// then nothing is left of a file that can't be finished.
func TestGGUFCommitMetadata(t *testing.T) {
	keys, blobs := everyType(t)
	for name, c := range map[string]struct {
		final map[string]string
		want  string
	}{
		"other key":    {map[string]string{"hash": "beef", "more": "x"}, `key "more" was not declared`},
		"other length": {map[string]string{"hash": "beefs"}, `key "hash": takes`},
		"a number":     {map[string]string{gguf.KeyAlignment: "beef"}, "alignment"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out.gguf")
			l, err := checkpoint.NewGGUFLayout(path, specsOf(blobs), keys, checkpoint.GGUFOptions{})
			if err != nil {
				t.Fatal(err)
			}
			err = writePieces(t, l, blobs, maps.Clone(c.final))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			checkNothing(t, filepath.Dir(path))
		})
	}
}
