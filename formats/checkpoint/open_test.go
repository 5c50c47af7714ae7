package checkpoint_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
)

const commit = "0123456789abcdef0123456789abcdef01234567"

// TestOpen guards what is found under each way to name a model.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	one := weights(t, map[string]string{"format": "pt", "a": "1"}, spec("w", 3))
	two := weights(t, map[string]string{"format": "pt", "a": "2"}, spec("v", 2))
	writeFile(t, dir, "file.safetensors", one)
	writeFile(t, dir, "odd.name", one)
	writeFile(t, dir, "folder/model.safetensors", one)
	writeFile(t, dir, "folder/config.json", []byte(`{"model_type":"llama"}`))
	writeFile(t, dir, "only/weights.safetensors", one)
	writeFile(t, dir, "both/model.safetensors", one)
	writeFile(t, dir, "both/model.safetensors.index.json", []byte(`{"weight_map":{"x":"none.safetensors"}}`))
	writeFile(t, dir, "sharded/b.safetensors", one)
	writeFile(t, dir, "sharded/a.safetensors", two)
	writeFile(t, dir, "sharded/model.safetensors.index.json", []byte(`{"weight_map":{"w":"b.safetensors","v":"a.safetensors"}}`))
	writeFile(t, dir, "sharded/left-over.safetensors", one)
	writeFile(t, dir, "adapter/adapter_model.safetensors", one)
	writeFile(t, dir, "adapter/adapter_config.json", []byte(`{"peft_type":"LORA"}`))

	for _, c := range []struct {
		path      string
		name      string
		tensors   string
		isFolder  bool
		isAdapter bool
		config    bool
	}{
		{"file.safetensors", "file.safetensors", "w", false, false, false},
		{"odd.name", "odd.name", "w", false, false, false},
		{"folder", "folder", "w", true, false, true},
		{"folder/", "folder", "w", true, false, true},
		{"folder/.", "folder", "w", true, false, true},
		{"folder/model.safetensors", "model.safetensors", "w", false, false, false},
		{"only", "only", "w", true, false, false},
		{"both", "both", "w", true, false, false},
		{"sharded", "sharded", "v w", true, false, false},
		{"sharded/b.safetensors", "b.safetensors", "w", false, false, false},
		{"adapter", "adapter", "w", true, true, true},
	} {
		t.Run(c.path, func(t *testing.T) {
			m := mustOpen(t, dir+"/"+c.path, hfrepo.Cache{})
			if m.Name != c.name || m.Commit != "" {
				t.Errorf("name %q, commit %q; want %q", m.Name, m.Commit, c.name)
			}
			if got := names(m); got != c.tensors {
				t.Errorf("tensors %q, want %q", got, c.tensors)
			}
			if m.IsFolder != c.isFolder || m.IsAdapter() != c.isAdapter || (m.Config != nil) != c.config {
				t.Errorf("folder %v, adapter %v, config %v", m.IsFolder, m.IsAdapter(), m.Config != nil)
			}
		})
	}
}

// TestOpenHere guards that a model gets the name of its folder and not ".".
func TestOpenHere(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "llama/model.safetensors", weights(t, nil, spec("w", 1)))
	writeFile(t, dir, "llama/sub/x", nil)
	t.Chdir(filepath.Join(dir, "llama"))
	if m := mustOpen(t, ".", hfrepo.Cache{}); m.Name != "llama" {
		t.Errorf("name %q", m.Name)
	}
	t.Chdir("sub")
	if m := mustOpen(t, "..", hfrepo.Cache{}); m.Name != "llama" {
		t.Errorf("name %q", m.Name)
	}
}

// TestOpenShards guards the bytes and the origin of every tensor of a sharded
// model, and the metadata that its files agree on.
func TestOpenShards(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "a.safetensors", weights(t, map[string]string{"format": "pt", "x": "1", "y": "1"}, spec("v", 2), spec("u", 1)))
	writeFile(t, dir, "b.safetensors", weights(t, map[string]string{"format": "pt", "x": "2"}, spec("w", 3)))
	writeFile(t, dir, "model.safetensors.index.json", []byte(`{"weight_map":{"w":"b.safetensors","v":"a.safetensors","u":"a.safetensors"}}`))
	m := mustOpen(t, dir, hfrepo.Cache{})
	if got := names(m); got != "u v w" {
		t.Errorf("tensors %q", got)
	}
	for name, want := range map[string]string{"u": "\x02", "v": "\x01\x01", "w": "\x01\x01\x01"} {
		r, err := m.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(r, 0, 100))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
		file, offset := m.Origin(name)
		raw, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.HasPrefix(string(raw[offset:]), want) {
			t.Errorf("%s is said to be at %d of %s, %v", name, offset, file, err)
		}
	}
	if md := m.Metadata(); len(md) != 1 || md["format"] != "pt" {
		t.Errorf("metadata %v, want what both files say", md)
	}
	if _, err := m.Open("x"); err == nil {
		t.Error("opened a tensor that is not there")
	}
	if _, ok := m.Lookup("x"); ok {
		t.Error("found a tensor that is not there")
	}
	if s, ok := m.Lookup("w"); !ok || s.Size() != 3 {
		t.Errorf("found %v, %v", s, ok)
	}
	var files []string
	for _, f := range m.Files() {
		files = append(files, f.Name)
		if st, err := os.Stat(f.Path); err != nil || st.Size() != f.Size {
			t.Errorf("%s: size %d, %v", f.Name, f.Size, err)
		}
	}
	if got := strings.Join(files, " "); got != "model.safetensors.index.json a.safetensors b.safetensors" {
		t.Errorf("files %s", got)
	}
}

// TestOpenRefuses has the inputs that are no model, each with what the message
// must say.
func TestOpenRefuses(t *testing.T) {
	good := weights(t, nil, spec("w", 3))
	index := func(m string) []byte { return []byte(`{"weight_map":{` + m + `}}`) }
	for _, c := range []struct {
		name  string
		files map[string][]byte
		open  string
		want  []string
	}{
		{"nothing there", nil, "none.safetensors", []string{"none.safetensors: no such file or directory"}},
		{"no path and no repository", nil, "no such/thing", []string{"no such/thing: no such file"}},
		{"empty folder", map[string][]byte{"m/x.txt": nil}, "m", []string{"no weights", "model.safetensors.index.json"}},
		{"pickle file", map[string][]byte{"m.bin": good}, "m.bin", []string{"pickle", "safetensors"}},
		{"pickle in capitals", map[string][]byte{"m.PTH": good}, "m.PTH", []string{"pickle"}},
		{"gguf file", map[string][]byte{"m.gguf": good}, "m.gguf", []string{"GGUF"}},
		{"pickle folder", map[string][]byte{"m/pytorch_model.bin": nil}, "m", []string{"pytorch_model.bin", "pickle"}},
		{"two files without an index", map[string][]byte{"m/a.safetensors": good, "m/b.safetensors": good}, "m", []string{"2 safetensors files"}},
		{"folder as weights", map[string][]byte{"m/model.safetensors/x": nil}, "m", []string{"m/model.safetensors: open: folder, not a regular file"}},
		{"cut short", map[string][]byte{"m.safetensors": good[:len(good)-1]}, "m.safetensors", []string{"m.safetensors: tensor"}},
		{"pointer as weights", map[string][]byte{"m.safetensors": []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")}, "m.safetensors", []string{"Git LFS pointer"}},
		{"empty config", map[string][]byte{"m/config.json": nil, "m/model.safetensors": good}, "m", []string{"m/config.json: "}},
		{"list as config", map[string][]byte{"m/config.json": []byte(`[]`), "m/model.safetensors": good}, "m", []string{"m/config.json: "}},
		{"key twice in config", map[string][]byte{"m/config.json": []byte(`{"a":1,"a":1}`), "m/model.safetensors": good}, "m", []string{"config.json", "duplicate"}},
		{"page as config", map[string][]byte{"m/config.json": []byte("\n<!doctype html>"), "m/model.safetensors": good}, "m", []string{"config.json", "HTML"}},
		{"pointer as config", map[string][]byte{"m/config.json": []byte("version https://git-lfs.github.com/spec/v1\n"), "m/model.safetensors": good}, "m", []string{"config.json", "LFS"}},
		{"huge config", map[string][]byte{"m/config.json": []byte(`{"a":"` + strings.Repeat("x", 1<<20) + `"}`), "m/model.safetensors": good}, "m", []string{"config.json", "at most 1048576"}},
		{"folder as config", map[string][]byte{"m/config.json/x": nil, "m/model.safetensors": good}, "m", []string{"config.json", "not a regular file"}},
		{"page as index", map[string][]byte{"m/model.safetensors.index.json": []byte("<html>")}, "m", []string{"index.json", "HTML"}},
		{"missing shards", map[string][]byte{"m/model.safetensors.index.json": index(`"a":"a.safetensors","b":"b.safetensors"`)}, "m", []string{"2 of its files are missing", `"a.safetensors", "b.safetensors"`}},
		{"many missing shards", map[string][]byte{"m/model.safetensors.index.json": index(manyShards(300))}, "m", []string{"300 of its files are missing", "and 295 more"}},
		{"tensor in no shard", map[string][]byte{"m/a.safetensors": good, "m/model.safetensors.index.json": index(`"w":"a.safetensors","v":"a.safetensors"`)}, "m", []string{`tensor "v" is not in a.safetensors`}},
		{"tensor not in the index", map[string][]byte{"m/a.safetensors": weights(t, nil, spec("w", 1), spec("v", 1)), "m/model.safetensors.index.json": index(`"w":"a.safetensors"`)}, "m", []string{`tensor "v" is not in the index`}},
		{"tensor in the other shard", map[string][]byte{"m/a.safetensors": good, "m/b.safetensors": weights(t, nil, spec("v", 1)),
			"m/model.safetensors.index.json": index(`"w":"b.safetensors","v":"a.safetensors"`)}, "m", []string{`tensor "w" should be in b.safetensors`}},
		{"tensor in two shards", map[string][]byte{"m/a.safetensors": good, "m/b.safetensors": weights(t, nil, spec("v", 1), spec("w", 1)),
			"m/model.safetensors.index.json": index(`"w":"a.safetensors","v":"b.safetensors"`)}, "m", []string{`tensor "w" should be in a.safetensors`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range c.files {
				writeFile(t, dir, name, data)
			}
			_, err := checkpoint.Open(filepath.Join(dir, c.open), hfrepo.Cache{Root: dir})
			checkInputError(t, err, c.want...)
			// The path stands in the message, once.
			if n := strings.Count(err.Error(), dir); n != 1 {
				t.Errorf("the folder is named %d times: %q", n, err)
			}
		})
	}
}

func manyShards(n int) string {
	var entries []string
	for i := range n {
		entries = append(entries, fmt.Sprintf(`"t%d":"s%d.safetensors"`, i, i))
	}
	return strings.Join(entries, ",")
}

func TestOpenAdapter(t *testing.T) {
	good := weights(t, nil, spec("w", 3))
	for _, c := range []struct {
		name  string
		files map[string][]byte
		want  string // empty to accept
	}{
		{"complete", map[string][]byte{"adapter_config.json": []byte(`{}`), "adapter_model.safetensors": good}, ""},
		{"beside a model", map[string][]byte{"adapter_config.json": []byte(`{}`), "adapter_model.safetensors": good, "model.safetensors": good}, ""},
		{"no config", map[string][]byte{"adapter_model.safetensors": good}, "no adapter_config.json: not a PEFT adapter folder"},
		{"a model", map[string][]byte{"config.json": []byte(`{}`), "model.safetensors": good}, "no adapter_config.json: not a PEFT adapter folder"},
		{"no weights", map[string][]byte{"adapter_config.json": []byte(`{}`), "README.md": nil}, "no adapter_model.safetensors"},
		{"pickled weights", map[string][]byte{"adapter_config.json": []byte(`{}`), "adapter_model.bin": nil}, "adapter_model.bin: PyTorch pickle"},
		{"config with Python's Infinity", map[string][]byte{"adapter_config.json": []byte(`{"r":Infinity}`), "adapter_model.safetensors": good}, "adapter_config.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range c.files {
				writeFile(t, dir, name, data)
			}
			m, err := checkpoint.OpenAdapter(dir, hfrepo.Cache{})
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got := names(m); got != "w" || m.Config == nil {
					t.Errorf("tensors %q, config %v", got, m.Config)
				}
				m.Close()
				return
			}
			checkInputError(t, err, c.want)
		})
	}
}

// hub makes a hub cache with one snapshot of links into blobs, as
// huggingface_hub does.
func hub(t *testing.T, files map[string][]byte) hfrepo.Cache {
	t.Helper()
	root := t.TempDir()
	repo := filepath.Join(root, "models--org--name")
	writeFile(t, repo, "refs/main", []byte(commit))
	i := 0
	for name, data := range files {
		blob := writeFile(t, repo, fmt.Sprintf("blobs/%040d", i), data)
		link := filepath.Join(repo, "snapshots", commit, name)
		if err := os.MkdirAll(filepath.Dir(link), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..", "..", "blobs", filepath.Base(blob)), link); err != nil {
			t.Skip("no symbolic links here: ", err)
		}
		i++
	}
	return hfrepo.Cache{Root: root}
}

// TestOpenCached guards that links of the cache are followed, that the name is
// the repository's, and that a local path wins.
func TestOpenCached(t *testing.T) {
	cache := hub(t, map[string][]byte{
		"a.safetensors": weights(t, nil, spec("w", 3)), "config.json": []byte(`{}`),
		"model.safetensors.index.json": []byte(`{"weight_map":{"w":"a.safetensors"}}`),
	})
	for _, ref := range []string{"org/name", "org/name@main", "org/name@" + commit} {
		m := mustOpen(t, ref, cache)
		if m.Name != "org/name" || m.Commit != commit || names(m) != "w" || m.Config == nil {
			t.Errorf("%s: name %q, commit %q, tensors %q", ref, m.Name, m.Commit, names(m))
		}
	}
	_, err := checkpoint.Open("org/other", cache)
	if _, ok := errors.AsType[*hfrepo.NotCachedError](err); !ok {
		t.Errorf("error %v, want a NotCachedError", err)
	}
	writeFile(t, cache.Root, "models--org--name/refs/broken", []byte("x"))
	_, err = checkpoint.Open("org/name@broken", cache)
	checkInputError(t, err, "does not hold a commit")

	t.Chdir(t.TempDir())
	writeFile(t, ".", "org/name/model.safetensors", weights(t, nil, spec("local", 1)))
	if m := mustOpen(t, "org/name", cache); names(m) != "local" || m.Commit != "" {
		t.Errorf("tensors %q, commit %q; want the local path", names(m), m.Commit)
	}
}

// TestOpenCachedIncomplete guards the message for a download that stopped.
func TestOpenCachedIncomplete(t *testing.T) {
	cache := hub(t, map[string][]byte{"model.safetensors.index.json": []byte(`{"weight_map":{"w":"a.safetensors"}}`)})
	_, err := checkpoint.Open("org/name", cache)
	checkInputError(t, err, "1 of its files are missing", "a.safetensors")

	cache = hub(t, map[string][]byte{"a.safetensors": weights(t, nil, spec("w", 3)), "model.safetensors.index.json": []byte(`{"weight_map":{"w":"a.safetensors"}}`)})
	blobs, err := filepath.Glob(filepath.Join(cache.Root, "*", "blobs", "*"))
	if err != nil || len(blobs) != 2 {
		t.Fatal(blobs, err)
	}
	for _, b := range blobs { // a link that leads nowhere is not a missing name
		if err := os.Remove(b); err != nil {
			t.Fatal(err)
		}
	}
	_, err = checkpoint.Open("org/name", cache)
	checkInputError(t, err, "no such file")
}

// TestCheckUnchanged guards that another file, other bytes or another length
// under the same name are noticed.
func TestCheckUnchanged(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(path string) error
		want   string
	}{
		{"nothing", func(string) error { return nil }, ""},
		{"cut, with the old time", func(path string) error {
			st, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(os.Truncate(path, 9), os.Chtimes(path, st.ModTime(), st.ModTime()))
		}, "changed while it was read"},
		{"written to", func(path string) error { return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)) }, "changed while it was read"},
		{"removed", os.Remove, "no such file"},
		{"replaced by its like", func(path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(path+".new", data, 0o666); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}, "changed while it was read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if runtime.GOOS == "windows" && c.want != "" {
				t.Skip("an open file can't be changed so")
			}
			path := writeFile(t, t.TempDir(), "m.safetensors", weights(t, nil, spec("w", 3)))
			m := mustOpen(t, path, hfrepo.Cache{})
			if err := c.change(path); err != nil {
				t.Fatal(err)
			}
			if err := m.CheckUnchanged(); c.want != "" {
				checkInputError(t, err, c.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSideFiles(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "model.safetensors", weights(t, nil, spec("w", 3)))
	for _, name := range []string{"tokenizer.json", "config.json", "README.md", "a.py", "folder.json/x.txt", "b.bin"} {
		writeFile(t, dir, name, []byte(`{"a":1}`))
	}
	m := mustOpen(t, dir, hfrepo.Cache{})
	files, err := m.SideFiles()
	if err != nil || len(files) != 2 || files[0].Name != "a.py" || files[1].Name != "tokenizer.json" || files[1].Size != 7 {
		t.Errorf("side files %v, %v", files, err)
	}
	if m.Card() != `{"a":1}` {
		t.Errorf("card %q", m.Card())
	}
	single := mustOpen(t, filepath.Join(dir, "model.safetensors"), hfrepo.Cache{})
	if files, err := single.SideFiles(); len(files) != 0 || err != nil || single.Card() != "" {
		t.Errorf("a file has side files %v, %v, card %q", files, err, single.Card())
	}
	if runtime.GOOS != "windows" {
		writeFile(t, dir, "c:d.txt", nil)
		_, err := m.SideFiles()
		checkInputError(t, err, "c:d.txt", "rename or remove")
	}
}

// TestModuleFiles: the folders that modules.json names belong to a model, with all that
// is in them, weights too, and no others.
func TestModuleFiles(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "model.safetensors", weights(t, nil, spec("w", 3)))
	for _, name := range []string{"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Other/config.json", "2_Dense/sub/x"} {
		writeFile(t, dir, name, []byte(`{}`))
	}
	m := mustOpen(t, dir, hfrepo.Cache{})
	for _, c := range []struct{ modules, files, refused string }{
		{`[{"path": "", "type": "T"}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "4_Normalize"}]`,
			"1_Pooling/config.json 2_Dense/config.json 2_Dense/model.safetensors modules.json", ""},
		{`[{"path": "../1_Pooling"}]`, "", `"../1_Pooling"`},
		{`[{"path": "1_Pooling/.."}]`, "", "1_Pooling/.."},
		{`[{"path": 1}]`, "", "modules.json"},
		{`{}`, "", "modules.json"},
		{`[`, "", "modules.json"},
	} {
		writeFile(t, dir, "modules.json", []byte(c.modules))
		files, err := m.SideFiles()
		if c.refused != "" {
			checkInputError(t, err, "modules.json", c.refused)
			continue
		}
		var names []string
		for _, f := range files {
			names = append(names, f.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.files {
			t.Errorf("%s: side files %s, %v, want %s", c.modules, got, err, c.files)
		}
	}
}

func TestMemory(t *testing.T) {
	var m checkpoint.Memory
	m.Add(spec("a", 3), []byte("abc"))
	m.Add(spec("b", 0), nil)
	if specs := m.Specs(); len(specs) != 2 || specs[0].Name != "a" {
		t.Errorf("specs %v", specs)
	}
	r, err := m.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off  int64
		size int
		want string
		err  error
	}{{0, 3, "abc", nil}, {1, 2, "bc", nil}, {1, 3, "bc", io.EOF}, {3, 1, "", io.EOF}, {-1, 1, "", io.EOF}, {99, 1, "", io.EOF}} {
		p := make([]byte, c.size)
		if n, err := r.ReadAt(p, c.off); string(p[:n]) != c.want || err != c.err {
			t.Errorf("ReadAt(%d, %d): %q, %v; want %q, %v", c.size, c.off, p[:n], err, c.want, c.err)
		}
	}
	if _, err := m.Open("c"); err == nil {
		t.Error("opened a tensor that is not there")
	}
}
