package checkpoint_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
)

// TestLayoutShards guards how tensors are spread over files: in their order, at
// most the limit of data per file, one that is larger in a file of its own.
func TestLayoutShards(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []int64
		limit int64
		want  string // names by file
	}{
		{"one file", []int64{3, 3, 3}, 9, "t0 t1 t2"},
		{"one byte over", []int64{3, 3, 3}, 8, "t0 t1|t2"},
		{"exactly at the limit", []int64{4, 4, 4, 4}, 8, "t0 t1|t2 t3"},
		{"too large in front", []int64{9, 1, 1}, 8, "t0|t1 t2"},
		{"too large between", []int64{1, 9, 1}, 8, "t0|t1|t2"},
		{"too large at the end", []int64{1, 9}, 8, "t0|t1"},
		{"alone too large", []int64{9}, 8, "t0"},
		{"empty ones take no room", []int64{8, 0, 8, 0}, 8, "t0 t1|t2 t3"},
		{"no tensors", nil, 8, ""},
		{"default limit", []int64{3, 3}, 0, "t0 t1"},
		{"greedy, not best", []int64{5, 5, 3, 3}, 8, "t0|t1 t2|t3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var specs []tensor.Spec
			for i, n := range c.sizes {
				specs = append(specs, spec(fmt.Sprintf("t%d", i), n))
			}
			l, err := checkpoint.NewLayout("out", specs, nil, checkpoint.Options{ShardSize: c.limit})
			if err != nil {
				t.Fatal(err)
			}
			var files []string
			for i := range l.Files {
				var names []string
				for _, x := range l.Files[i].Tensors() {
					names = append(names, x.Name)
				}
				files = append(files, strings.Join(names, " "))
				want := "model.safetensors"
				if len(l.Files) > 1 {
					want = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(l.Files))
				}
				if l.Files[i].Name != want {
					t.Errorf("file %q, want %q", l.Files[i].Name, want)
				}
			}
			if got := strings.Join(files, "|"); got != c.want {
				t.Errorf("files %q, want %q", got, c.want)
			}
			checkIndex(t, l, len(l.Files) > 1)
		})
	}
}

// checkIndex wants an index if and only if there are several files, last of the
// side files, with every tensor at its file.
func checkIndex(t *testing.T, l *checkpoint.Layout, want bool) {
	t.Helper()
	if !want {
		if len(l.Sidecars) != 0 {
			t.Errorf("side files %v", l.Sidecars)
		}
		return
	}
	s := l.Sidecars[len(l.Sidecars)-1]
	if s.Name != "model.safetensors.index.json" || s.Size != int64(len(s.Data)) {
		t.Fatalf("last side file %q of %d bytes", s.Name, s.Size)
	}
	x, err := hfrepo.ParseIndex(s.Data)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(x.Tensors()) {
		t.Errorf("the index is in the order %q", x.Tensors())
	}
	n, total := 0, int64(0)
	for _, f := range l.Files {
		for _, s := range f.Tensors() {
			n++
			total += s.Size()
			if file, _ := x.File(s.Name); file != f.Name {
				t.Errorf("%s is in %q, the index says %q", s.Name, f.Name, file)
			}
		}
	}
	if n != len(x.Tensors()) || total != x.TotalSize {
		t.Errorf("%d tensors of %d bytes, the index says %d of %d", n, total, len(x.Tensors()), x.TotalSize)
	}
}

// TestIndexIsSorted guards the order of the index when that of the tensors is
// another.
func TestIndexIsSorted(t *testing.T) {
	l, err := checkpoint.NewLayout("out", []tensor.Spec{spec("b", 5), spec("a", 5)}, nil, checkpoint.Options{ShardSize: 5})
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, l, true)
}

// TestLayoutFile guards that a path that ends in .safetensors is one file,
// however large, without an index.
func TestLayoutFile(t *testing.T) {
	l, err := checkpoint.NewLayout("dir/out.safetensors", []tensor.Spec{spec("a", 5), spec("b", 5)}, nil, checkpoint.Options{ShardSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	if l.IsFolder || len(l.Files) != 1 || len(l.Sidecars) != 0 || l.Files[0].Name != "out.safetensors" {
		t.Errorf("layout %+v", l)
	}
	if got := l.FilePath("anything"); got != "dir/out.safetensors" {
		t.Errorf("path %q", got)
	}
	if l.Size() != l.Files[0].Size() {
		t.Errorf("size %d, its file has %d", l.Size(), l.Files[0].Size())
	}
}

func TestLayoutSize(t *testing.T) {
	sidecars := []checkpoint.Sidecar{{Name: "config.json", Data: []byte("{}")}, {Name: "t.json", Source: "anywhere", Size: 100}}
	l, err := checkpoint.NewLayout("out", []tensor.Spec{spec("a", 5)}, sidecars, checkpoint.Options{Metadata: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := l.Files[0].Size() + 2 + 100; l.Size() != want {
		t.Errorf("size %d, want %d", l.Size(), want)
	}
	if got := l.FilePath("t.json"); got != "out/t.json" {
		t.Errorf("path %q", got)
	}
}

func TestLayoutRefuses(t *testing.T) {
	for _, c := range []struct {
		name     string
		specs    []tensor.Spec
		sidecars []checkpoint.Sidecar
		want     string
	}{
		{"tensor twice in a file", []tensor.Spec{spec("a", 1), spec("a", 1)}, nil, `tensor "a": declared twice`},
		{"tensor twice in two files", []tensor.Spec{spec("a", 8), spec("b", 8), spec("a", 8)}, nil, `tensor "a" is declared twice`},
		{"file twice", []tensor.Spec{spec("a", 1)}, []checkpoint.Sidecar{{Name: "x"}, {Name: "x"}}, "x: the file is declared twice"},
		{"side file over weights", []tensor.Spec{spec("a", 1)}, []checkpoint.Sidecar{{Name: "model.safetensors"}}, "declared twice"},
		{"reserved name", []tensor.Spec{spec("__metadata__", 1)}, nil, "reserved"},
		{"sizes overflow", []tensor.Spec{spec("a", 1<<60-1), spec("b", 1<<60-1), spec("c", 1<<60-1), spec("d", 1<<60-1), spec("e", 1<<60-1),
			spec("f", 1<<60-1), spec("g", 1<<60-1), spec("h", 1<<60-1), spec("i", 1<<60-1)}, nil, "overflows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := int64(8)
			if c.name == "sizes overflow" {
				limit = 1<<63 - 1
			}
			_, err := checkpoint.NewLayout("out", c.specs, c.sidecars, checkpoint.Options{ShardSize: limit})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
