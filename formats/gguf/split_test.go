package gguf_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
)

// The files that llama.cpp's gguf-split makes, by digest.
func TestSplitMatchesReference(t *testing.T) {
	var ways []struct {
		Args    string
		Refused string
		Shapes  [][]int64 // of a model of zeros; fastest first
		Options struct {
			MaxTensors int   `json:"max_tensors"`
			MaxBytes   int64 `json:"max_bytes"`
			FirstEmpty bool  `json:"first_empty"`
		}
		Files map[string]string
	}
	if err := json.Unmarshal(readFile(t, golden+"/splits.json"), &ways); err != nil {
		t.Fatal(err)
	}
	if len(ways) < 20 {
		t.Fatalf("%d ways to split", len(ways))
	}
	for _, way := range ways {
		t.Run(strings.TrimSpace(way.Args+" "+way.Refused), func(t *testing.T) {
			source := mustOpen(t, readFile(t, golden+"/models/llama/expected-f16.gguf"))
			m, declared := source.Metadata(), specs(source.Tensors())
			data := func(s gguf.Tensor) (io.Reader, error) { return bytes.NewReader(sectionBytes(t, source, s.Name)), nil }
			if way.Shapes != nil || way.Refused != "" {
				m, declared = metadata("general.architecture", gguf.ValueOf("llama")), nil
				data = func(s gguf.Tensor) (io.Reader, error) { return bytes.NewReader(make([]byte, s.Size())), nil }
			}
			for i, dims := range way.Shapes {
				s := spec(fmt.Sprintf("t%d", i), gguf.F32)
				for j := range dims {
					s.Shape = append(s.Shape, dims[len(dims)-1-j])
				}
				s.Shape = gguf.TrimShape(s.Shape)
				declared = append(declared, s)
			}
			options := gguf.SplitOptions{MaxTensors: way.Options.MaxTensors, MaxBytes: way.Options.MaxBytes, FirstEmpty: way.Options.FirstEmpty}
			layouts, err := gguf.Split(m, declared, options, gguf.LayoutOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if way.Refused != "" { // no file can match; TestSplitLargeFirst looks at these
				return
			}
			if len(layouts) != len(way.Files) {
				t.Errorf("%d files, want %d", len(layouts), len(way.Files))
			}
			for i, l := range layouts {
				name := gguf.ShardName("m", i, len(layouts))
				h := sha256.New()
				if err := l.Write(h, data); err != nil {
					t.Fatal(err)
				}
				if got := hex.EncodeToString(h.Sum(nil)); got != way.Files[name] {
					t.Errorf("%s: digest %s, want %s", name, got, way.Files[name])
				}
			}
		})
	}
}

// tensorsOf lists the tensors of each file, as "abc | d".
func tensorsOf(layouts []*gguf.Layout) string {
	var files []string
	for _, l := range layouts {
		names := ""
		for _, s := range l.Tensors() {
			names += s.Name
		}
		files = append(files, names)
	}
	return strings.Join(files, " | ")
}

// A first tensor above the limit gets a file; the reference gives up.
func TestSplitLargeFirst(t *testing.T) {
	declared := []gguf.Spec{spec("a", gguf.I8, 1000), spec("b", gguf.I8, 10), spec("c", gguf.I8, 2000), spec("d", gguf.I8, 32), spec("e", gguf.I8, 0), spec("f", gguf.I8, 33)}
	for _, test := range []struct {
		options gguf.SplitOptions
		want    string
	}{
		{gguf.SplitOptions{MaxBytes: 64}, "a | b | c | de | f"},
		{gguf.SplitOptions{MaxBytes: 64, FirstEmpty: true}, " | a | b | c | de | f"},
		{gguf.SplitOptions{MaxBytes: 95}, "a | b | c | de | f"},
		{gguf.SplitOptions{MaxBytes: 96}, "a | b | c | def"},
		{gguf.SplitOptions{MaxBytes: 1}, "a | b | c | d | e | f"},
		{gguf.SplitOptions{MaxBytes: 1 << 62}, "abcdef"},
		{gguf.SplitOptions{MaxTensors: 4}, "abcd | ef"},
		{gguf.SplitOptions{MaxTensors: 6, FirstEmpty: true}, " | abcdef"},
		{gguf.SplitOptions{}, "abcdef"},
	} {
		layouts, err := gguf.Split(metadata(), declared, test.options, gguf.LayoutOptions{})
		if got := tensorsOf(layouts); got != test.want || err != nil {
			t.Errorf("%+v: %q %v, want %q", test.options, got, err, test.want)
		}
	}
	if layouts, err := gguf.Split(metadata(), nil, gguf.SplitOptions{}, gguf.LayoutOptions{}); err != nil || len(layouts) != 1 {
		t.Errorf("no tensors: %d files, %v", len(layouts), err)
	}
}

// Tensors of exabytes do not wrap around into one file.
func TestSplitHuge(t *testing.T) {
	huge := int64(1) << 61
	declared := []gguf.Spec{spec("a", gguf.I8, huge), spec("b", gguf.I8, huge), spec("c", gguf.I8, huge), spec("d", gguf.I8, huge), spec("e", gguf.I8, huge)}
	layouts, err := gguf.Split(metadata(), declared, gguf.SplitOptions{MaxBytes: 1 << 60}, gguf.LayoutOptions{})
	if got := tensorsOf(layouts); got != "a | b | c | d | e" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if _, err := gguf.Split(metadata(), declared, gguf.SplitOptions{MaxTensors: 5}, gguf.LayoutOptions{}); err == nil {
		t.Error("a file of ten exabytes was laid out")
	}
}

// An alignment is kept in all files, each of which says so.
func TestSplitKeepsAlignment(t *testing.T) {
	m := metadata(gguf.KeyAlignment, gguf.ValueOf(uint32(128)), "k", gguf.ValueOf(uint8(1)))
	declared := []gguf.Spec{spec("a", gguf.I8, 3), spec("b", gguf.I8, 3), spec("c", gguf.I8, 3), spec("d", gguf.I8, 3)}
	layouts, err := gguf.Split(m, declared, gguf.SplitOptions{MaxBytes: 256}, gguf.LayoutOptions{Version: 2})
	if err != nil || tensorsOf(layouts) != "ab | cd" {
		t.Fatalf("%q %v", tensorsOf(layouts), err)
	}
	for i, l := range layouts {
		f := mustOpen(t, assemble(t, l, func(s gguf.Spec) []byte { return []byte(s.Name + "xx") }))
		if f.Alignment() != 128 || f.Tensors()[1].Offset%128 != 0 || f.Metadata().Has("k") != (i == 0) || f.Version() != 2 {
			t.Errorf("file %d: alignment %d, %q", i, f.Alignment(), describe(f.Metadata()))
		}
	}
}

// The default alignment, though it is spelled out, stays where it was: in the
// first file, as in the reference.
func TestSplitOfDefaultAlignment(t *testing.T) {
	m := metadata(gguf.KeyAlignment, gguf.ValueOf(uint32(32)))
	layouts, err := gguf.Split(m, []gguf.Spec{spec("a", gguf.I8, 3), spec("b", gguf.I8, 3)}, gguf.SplitOptions{MaxTensors: 1}, gguf.LayoutOptions{})
	if err != nil || len(layouts) != 2 {
		t.Fatalf("%d files, %v", len(layouts), err)
	}
	if first, second := layouts[0].Metadata(), layouts[1].Metadata(); !first.Has(gguf.KeyAlignment) || second.Has(gguf.KeyAlignment) || second.Len() != 3 {
		t.Errorf("keys %q and %q", describe(first), describe(second))
	}
}

func TestSplitRefuses(t *testing.T) {
	var many []gguf.Spec
	for i := range 1 << 16 {
		many = append(many, spec(fmt.Sprint(i), gguf.I8, 1))
	}
	for _, test := range []struct {
		name     string
		metadata *gguf.Metadata
		specs    []gguf.Spec
		options  gguf.SplitOptions
		want     string
	}{
		{"two limits", metadata(), nil, gguf.SplitOptions{MaxBytes: 1, MaxTensors: 1}, "MaxTensors and MaxBytes are both set"},
		{"negative number", metadata(), nil, gguf.SplitOptions{MaxTensors: -1}, "MaxTensors is -1"},
		{"negative size", metadata(), nil, gguf.SplitOptions{MaxBytes: -1}, "MaxBytes is -1"},
		{"alignment", metadata(gguf.KeyAlignment, gguf.ValueOf(uint32(5))), nil, gguf.SplitOptions{}, "alignment 5 is not a power of two"},
		{"twice in two files", metadata(), []gguf.Spec{spec("a", gguf.I8, 1), spec("a", gguf.I8, 1)}, gguf.SplitOptions{MaxTensors: 1}, `tensor "a": declared twice`},
		{"bad tensor", metadata(), []gguf.Spec{spec("a", gguf.Q8_0, 1)}, gguf.SplitOptions{MaxBytes: 1}, `tensor "a": rows of 1`},
		{"too many files", metadata(), many, gguf.SplitOptions{MaxTensors: 1}, "65536 files are more than the 65535"},
		{"bad key", metadata("", gguf.Value{}), nil, gguf.SplitOptions{}, "key is empty"},
	} {
		_, err := gguf.Split(test.metadata, test.specs, test.options, gguf.LayoutOptions{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestShardNames(t *testing.T) {
	for _, test := range []struct {
		name, prefix string
		no, count    int
	}{
		{"m-00001-of-00003.gguf", "m", 0, 3},
		{"dir/a-b-00002-of-00002.gguf", "dir/a-b", 1, 2},
		{"a-00001-of-00002-00065-of-65535.gguf", "a-00001-of-00002", 64, 65535},
		{"line\nbreak-00001-of-00001.gguf", "line\nbreak", 0, 1},
	} {
		prefix, no, count, ok := gguf.ParseShardName(test.name)
		if !ok || prefix != test.prefix || no != test.no || count != test.count || gguf.ShardName(prefix, no, count) != test.name {
			t.Errorf("%q: %q %d of %d, %v", test.name, prefix, no, count, ok)
		}
	}
	for _, name := range []string{"", "m.gguf", "-00001-of-00002.gguf", "m-1-of-2.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf",
		"m-00001-of-00002.GGUF", "m-00001-of-00002.gguf.part", "m-00001-of-000002.gguf", "m-00001_of_00002.gguf", "m-00001-of-00002xgguf"} {
		if prefix, no, count, ok := gguf.ParseShardName(name); ok {
			t.Errorf("%q is taken for %d of %d of %q", name, no, count, prefix)
		}
	}
}

// splitModel writes a model of five tensors into three files and returns the
// prefix of their paths. The hook may change the metadata of each.
func splitModel(t *testing.T, change func(no int, m *gguf.Metadata)) string {
	t.Helper()
	prefix := filepath.Join(t.TempDir(), "m")
	m := metadata("general.architecture", gguf.ValueOf("test"), "k", gguf.ValueOf(uint8(1)))
	var declared []gguf.Spec
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		declared = append(declared, spec(name, gguf.I8, 5))
	}
	layouts, err := gguf.Split(m, declared, gguf.SplitOptions{MaxTensors: 2}, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layouts {
		keys := l.Metadata().Clone()
		if change != nil {
			change(i, keys)
		}
		l := layout(t, keys, specs(l.Tensors())...)
		data := assemble(t, l, func(s gguf.Spec) []byte { return []byte(s.Name + "data") })
		if err := os.WriteFile(gguf.ShardName(prefix, i, len(layouts)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return prefix
}

// The whole model opens from any of its files and from their folder, whatever
// else is in there.
func TestOpenSet(t *testing.T) {
	prefix := splitModel(t, nil)
	if err := os.Mkdir(filepath.Join(filepath.Dir(prefix), "old.gguf"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(prefix), "README.md"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(prefix), gguf.ShardName(prefix, 0, 3), gguf.ShardName(prefix, 1, 3), gguf.ShardName(prefix, 2, 3)} {
		s, err := gguf.OpenSet(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		names := ""
		for _, x := range s.Tensors() {
			names += x.Name
			if got := string(sectionBytes(t, s, x.Name)); got != x.Name+"data" {
				t.Errorf("%s holds %q", x.Name, got)
			}
			if own, ok := s.Files()[x.File].Lookup(x.Name); !ok || own.Offset != x.Offset {
				t.Errorf("%s is not in file %d", x.Name, x.File)
			}
		}
		if names != "abcde" || len(s.Files()) != 3 || s.Paths()[2] != gguf.ShardName(prefix, 2, 3) {
			t.Errorf("tensors %s in %q", names, s.Paths())
		}
		if got := describe(s.Metadata()); len(got) != 2 || got[1] != "k u8 1" {
			t.Errorf("metadata %q", got)
		}
		if x, ok := s.Lookup("d"); !ok || x.File != 1 {
			t.Errorf("d is in file %d", x.File)
		}
		if _, ok := s.Lookup("x"); ok {
			t.Error("found what is not there")
		}
		if _, err := s.Section("x"); err == nil {
			t.Error("section of nothing")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The split that the reference made, joined again, is its source; what it
// joined itself differs in the keys it leaves.
func TestGoldenSplit(t *testing.T) {
	source := mustOpen(t, readFile(t, golden+"/models/llama/expected-f16.gguf"))
	for _, path := range []string{golden + "/models/split", golden + "/models/split/tiny-00003-of-00004.gguf"} {
		s, err := gguf.OpenSet(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var declared []gguf.Spec
		for _, x := range s.Tensors() {
			declared = append(declared, x.Spec)
		}
		for _, test := range []struct {
			m    *gguf.Metadata
			want []byte
		}{
			{s.Metadata(), readFile(t, golden+"/models/llama/expected-f16.gguf")},
			{leaveSplitKeys(s), readFile(t, golden+"/models/merged-from-split.gguf")},
		} {
			l := layout(t, test.m, declared...)
			if got := assemble(t, l, func(x gguf.Spec) []byte { return sectionBytes(t, s, x.Name) }); !bytes.Equal(got, test.want) {
				t.Errorf("%s: %d bytes differ from %d", path, len(got), len(test.want))
			}
		}
	}
	merged, err := gguf.OpenSet(golden + "/models/merged-from-split.gguf") // count 0: not split
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	sameContent(t, merged.Files()[0], mustOpen(t, readFile(t, golden+"/models/merged-from-split.gguf")))
	if len(merged.Tensors()) != len(source.Tensors()) || len(describe(merged.Metadata())) != source.Metadata().Len() {
		t.Errorf("%d tensors, %q", len(merged.Tensors()), describe(merged.Metadata()))
	}
}

// leaveSplitKeys gives the keys that the reference's joining leaves behind.
func leaveSplitKeys(s *gguf.Set) *gguf.Metadata {
	m := s.Files()[0].Metadata().Clone()
	m.Set(gguf.KeySplitCount, gguf.ValueOf(uint16(0)))
	return m
}

// One file that is not split, whatever its name, and folders of it.
func TestOpenSetOfOne(t *testing.T) {
	dir := t.TempDir()
	for _, m := range []*gguf.Metadata{metadata(), metadata(gguf.KeySplitCount, gguf.ValueOf(uint16(0))), metadata(gguf.KeySplitCount, gguf.ValueOf(uint16(1)))} {
		for _, name := range []string{"m.gguf", "m-00002-of-00003.gguf"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, assemble(t, layout(t, m), nil), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{path, dir} {
				s, err := gguf.OpenSet(p)
				if err != nil {
					t.Errorf("%s: %v", p, err)
					continue
				}
				if s.Metadata().Len() != 0 || len(s.Files()) != 1 {
					t.Errorf("%s: %q", p, describe(s.Metadata()))
				}
				s.Close()
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestOpenSetRefuses(t *testing.T) {
	set := func(key string, v gguf.Value, in ...int) func(int, *gguf.Metadata) {
		return func(no int, m *gguf.Metadata) {
			for _, i := range in {
				if i == no {
					m.Set(key, v)
				}
			}
		}
	}
	drop := func(key string, in int) func(int, *gguf.Metadata) {
		return func(no int, m *gguf.Metadata) {
			if no == in {
				m.Delete(key)
			}
		}
	}
	for _, test := range []struct {
		name   string
		change func(int, *gguf.Metadata)
		want   string
	}{
		{"number of the first", set(gguf.KeySplitNo, gguf.ValueOf(uint16(1)), 0), "m-00001-of-00003.gguf: is named as file 1 of 3 but is file 2 of 3"},
		{"number of another", set(gguf.KeySplitNo, gguf.ValueOf(uint16(0)), 2), "m-00003-of-00003.gguf: is named as file 3 of 3 but is file 1 of 3"},
		{"number beyond the count", set(gguf.KeySplitNo, gguf.ValueOf(uint16(3)), 0), `key "split.no": is 3 in a model of 3 files`},
		{"number missing", drop(gguf.KeySplitNo, 1), `m-00002-of-00003.gguf: key "split.no": missing in a model of 3 files`},
		{"number of another type", set(gguf.KeySplitNo, gguf.ValueOf(uint32(0)), 0), `key "split.no": is u32, must be u16`},
		{"count of the first", set(gguf.KeySplitCount, gguf.ValueOf(uint16(4)), 0), "is named as file 1 of 3 but is file 1 of 4"},
		{"count of another", set(gguf.KeySplitCount, gguf.ValueOf(uint16(4)), 1), "m-00002-of-00003.gguf: is named as file 2 of 3 but is file 2 of 4"},
		{"count missing in another", drop(gguf.KeySplitCount, 1), "m-00002-of-00003.gguf: is named as file 2 of 3 but says that it is not split"},
		{"count of another type", set(gguf.KeySplitCount, gguf.ValueOf("3"), 0), `key "split.count": is str, must be u16`},
		{"total wrong", set(gguf.KeySplitTensors, gguf.ValueOf(int32(6)), 0, 1, 2), `m-00001-of-00003.gguf: key "split.tensors.count": is 6, the files have 5 tensors together`},
		{"total wrong in another", set(gguf.KeySplitTensors, gguf.ValueOf(int32(4)), 2), `m-00003-of-00003.gguf: key "split.tensors.count": is 4, the files have 5`},
		{"total negative", set(gguf.KeySplitTensors, gguf.ValueOf(int32(-5)), 0), "is -5, the files have 5"},
		{"total missing", drop(gguf.KeySplitTensors, 0), `key "split.tensors.count": missing`},
		{"total of another type", set(gguf.KeySplitTensors, gguf.ValueOf(uint32(5)), 0), `is u32, must be i32`},
		{"key that readers lose", set("late", gguf.ValueOf(uint8(1)), 1), `m-00002-of-00003.gguf: key "late": differs from the first file`},
		{"key that contradicts", set("k", gguf.ValueOf(uint8(2)), 2), `m-00003-of-00003.gguf: key "k": differs from the first file`},
	} {
		t.Run(test.name, func(t *testing.T) {
			prefix := splitModel(t, test.change)
			_, err := gguf.OpenSet(filepath.Dir(prefix))
			checkFormatError(t, err, test.want)
		})
	}
	for name, change := range map[string]func(int, *gguf.Metadata){
		"key repeated":          set("k", gguf.ValueOf(uint8(1)), 1, 2),
		"alignment of one file": set(gguf.KeyAlignment, gguf.ValueOf(uint32(64)), 1),
		"total in the first":    drop(gguf.KeySplitTensors, 2),
	} {
		s, err := gguf.OpenSet(gguf.ShardName(splitModel(t, change), 2, 3))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s.Close()
	}
}

// Files that are not there, too many, or not what their names say.
func TestOpenSetOfWrongFiles(t *testing.T) {
	prefix := splitModel(t, nil)
	shard := func(i int) string { return gguf.ShardName(prefix, i, 3) }
	first := readFile(t, shard(0))

	joined := filepath.Join(t.TempDir(), "joined.gguf")
	if err := os.WriteFile(joined, bytes.Join([][]byte{first, readFile(t, shard(1)), readFile(t, shard(2))}, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := gguf.OpenSet(joined)
	checkFormatError(t, err, "bytes behind its end, as if they had been joined with cat, but is not named like one")

	renamed := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(renamed, first, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = gguf.OpenSet(renamed)
	checkFormatError(t, err, `is file 1 of a model of 3 files, but is not named like one: "NAME-00001-of-00003.gguf"`)

	other := filepath.Join(filepath.Dir(prefix), "other.gguf")
	if err := os.WriteFile(other, small(), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = gguf.OpenSet(filepath.Dir(prefix))
	if err == nil || !strings.Contains(err.Error(), `2 models, among them "m-00001-of-00003.gguf" and "other.gguf"; name one`) {
		t.Errorf("two models: %v", err)
	}

	if err := os.WriteFile(shard(2), readFile(t, shard(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = gguf.OpenSet(shard(0))
	checkFormatError(t, err, "m-00003-of-00003.gguf: is named as file 3 of 3 but is file 2 of 3")

	if err := os.WriteFile(shard(2), first[:40], 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = gguf.OpenSet(shard(1))
	checkFormatError(t, err, "m-00003-of-00003.gguf: ")

	if err := os.Remove(shard(0)); err != nil {
		t.Fatal(err)
	}
	_, err = gguf.OpenSet(shard(1))
	checkFormatError(t, err, `1 of 3 files of the model are missing: "m-00001-of-00003.gguf"`)

	if _, err := gguf.OpenSet(t.TempDir()); !errors.Is(err, gguf.ErrNoGGUF) {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := gguf.OpenSet(filepath.Join(t.TempDir(), "absent.gguf")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

// A tensor may not be in two files.
func TestOpenSetRefusesTwins(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "m")
	for i := range 2 {
		m := metadata(gguf.KeySplitNo, gguf.ValueOf(uint16(i)), gguf.KeySplitTensors, gguf.ValueOf(int32(2)), gguf.KeySplitCount, gguf.ValueOf(uint16(2)))
		data := assemble(t, layout(t, m, gguf.Spec{Name: "a", Type: gguf.I8, Shape: tensor.Shape{4}}), func(gguf.Spec) []byte { return []byte("data") })
		if err := os.WriteFile(gguf.ShardName(prefix, i, 2), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := gguf.OpenSet(gguf.ShardName(prefix, 1, 2))
	checkFormatError(t, err, `m-00002-of-00002.gguf: tensor "a": tensor is in "m-00001-of-00002.gguf" too`)
}

// A model of very many files names a few of the missing.
func TestOpenSetOfManyMissing(t *testing.T) {
	m := metadata(gguf.KeySplitNo, gguf.ValueOf(uint16(0)), gguf.KeySplitCount, gguf.ValueOf(uint16(65535)))
	path := gguf.ShardName(filepath.Join(t.TempDir(), "m"), 0, 65535)
	if err := os.WriteFile(path, assemble(t, layout(t, m), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := gguf.OpenSet(path)
	checkFormatError(t, err, `65534 of 65535 files of the model are missing: "m-00002-of-65535.gguf", "m-00003-of-65535.gguf", `)
	checkFormatError(t, err, "and 65529 more")
}
