package fsatomic_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// disk is a file system whose content a test may set and see.
type disk interface {
	fsatomic.FS
	WriteFile(name string, data []byte) error
	ReadFile(name string) ([]byte, error)
}

type realDisk struct{ fsatomic.OS }

func (realDisk) WriteFile(name string, data []byte) error { return os.WriteFile(name, data, 0o666) }
func (realDisk) ReadFile(name string) ([]byte, error)     { return os.ReadFile(name) }

var (
	_ disk = realDisk{}
	_ disk = (*faultfs.Mem)(nil)
)

// tree is the content of a folder: paths to file contents, folders end in "/".
type tree map[string]string

// plant writes a tree into an existing folder.
func plant(t *testing.T, d disk, dir string, want tree) {
	t.Helper()
	for name := range want {
		for i, c := range name {
			if c != '/' {
				continue
			}
			err := d.Mkdir(filepath.Join(dir, name[:i]))
			if err != nil && !errors.Is(err, fs.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	for name, content := range want {
		if strings.HasSuffix(name, "/") {
			continue
		}
		if err := d.WriteFile(filepath.Join(dir, name), []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
}

// harvest reads a folder back. Links appear as "-> destination".
func harvest(t *testing.T, d disk, dir string) tree {
	t.Helper()
	found := tree{}
	var walk func(rel string)
	walk = func(rel string) {
		entries, err := d.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			name := path.Join(rel, entry.Name())
			switch {
			case entry.IsDir():
				found[name+"/"] = ""
				walk(name)
			case entry.Type()&fs.ModeSymlink != 0:
				to, err := os.Readlink(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				found[name] = "-> " + to
			default:
				content, err := d.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				found[name] = string(content)
			}
		}
	}
	walk("")
	return found
}

// under returns a tree moved to another name.
func (a tree) under(name string) tree {
	moved := tree{}
	for rel, content := range a {
		moved[name+rel] = content
	}
	return moved
}

func (a tree) plus(b tree) tree {
	sum := maps.Clone(a)
	maps.Copy(sum, b)
	return sum
}

// below returns what a tree has under a name, nil if nothing.
func (a tree) below(name string) tree {
	var found tree
	for rel, content := range a {
		if rest, ok := strings.CutPrefix(rel, name); ok && (rest == "" || rest[0] == '/') {
			if found == nil {
				found = tree{}
			}
			found[rest] = content
		}
	}
	return found
}

var leftoverName = regexp.MustCompile(`^(out\.(?:partial|old)-[0-9a-f]{8})(?:/|$)`)

// leftovers returns what lies beside the target "out", by name.
func (a tree) leftovers() map[string]tree {
	found := map[string]tree{}
	for rel := range a {
		if match := leftoverName.FindStringSubmatch(rel); match != nil {
			found[match[1]] = a.below(match[1])
		}
	}
	return found
}

func checkTree(t *testing.T, got, want tree) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("disk holds\n%q\nwant\n%q", got, want)
	}
}

// scenario is one way to make the output "out".
type scenario struct {
	name    string
	kind    fsatomic.Kind
	force   bool
	old     tree // what "out" is before, nil for absent
	twoStep bool // the file system can not exchange
}

var (
	oldFile = tree{"": "the old file"}
	newFile = tree{"": "the new file, with a hole:" + strings.Repeat("\x00", 40) + "and another" + strings.Repeat("\x00", 20)}
	oldDir  = tree{"/": "", "/config.json": "old config", "/model.safetensors": "old weights", "/x.txt": "old"}
	newDir  = tree{"/": "", "/config.json": "{}", "/empty": "", "/model.safetensors": newFile[""], "/1_Pooling/": "", "/1_Pooling/config.json": "{ }", "/1_Pooling/x": ""}
	// bystander must survive everything.
	bystander = tree{"out.txt": "not ours", "out.partial-notes": "nor this"}
)

var scenarios = []scenario{
	{name: "file", kind: fsatomic.KindFile},
	{name: "file forced", kind: fsatomic.KindFile, force: true},
	{name: "file over file", kind: fsatomic.KindFile, force: true, old: oldFile},
	{name: "file over file in two steps", kind: fsatomic.KindFile, force: true, old: oldFile, twoStep: true},
	{name: "folder", kind: fsatomic.KindDir},
	{name: "folder forced", kind: fsatomic.KindDir, force: true},
	{name: "folder over folder", kind: fsatomic.KindDir, force: true, old: oldDir},
	{name: "folder over folder in two steps", kind: fsatomic.KindDir, force: true, old: oldDir, twoStep: true},
}

func (s scenario) want() tree {
	if s.kind == fsatomic.KindDir {
		return newDir
	}
	return newFile
}

// injectors returns those that the scenario itself needs.
func (s scenario) injectors() []faultfs.Injector {
	if s.twoStep {
		return []faultfs.Injector{faultfs.FailOp(faultfs.OpExchange, errors.ErrUnsupported)}
	}
	return nil
}

// prepare makes a folder as it is before the run.
func (s scenario) prepare(t *testing.T, d disk, dir string) {
	t.Helper()
	plant(t, d, dir, bystander.plus(s.old.under("out")))
}

// run makes the output as a careful caller does: it stops at the first error
// and aborts.
func (s scenario) run(fsys fsatomic.FS, dir string) (err error) {
	out, err := fsatomic.New(fsys, filepath.Join(dir, "out"), s.kind, s.force)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Abort()) }()
	if err := out.CheckSpace(1); err != nil {
		return err
	}
	if s.kind == fsatomic.KindFile {
		f, err := out.Create("", int64(len(newFile[""])))
		if err != nil {
			return err
		}
		if err := writeHoley(f, newFile[""]); err != nil {
			return err
		}
		return out.Commit()
	}
	for _, rel := range slices.Sorted(maps.Keys(newDir)) {
		if strings.HasSuffix(rel, "/") {
			continue
		}
		content := newDir[rel]
		f, err := out.Create(rel[1:], int64(len(content)))
		if err != nil {
			return err
		}
		if err := writeHoley(f, content); err != nil {
			return err
		}
		if rel == "/config.json" { // the others are left to Commit
			if err := f.Close(); err != nil {
				return err
			}
		}
	}
	return out.Commit()
}

// runCareless ignores all errors on its way to Commit.
func (s scenario) runCareless(fsys fsatomic.FS, dir string) error {
	out, err := fsatomic.New(fsys, filepath.Join(dir, "out"), s.kind, s.force)
	if err != nil {
		return err
	}
	for _, rel := range slices.Sorted(maps.Keys(s.want())) {
		if strings.HasSuffix(rel, "/") {
			continue
		}
		content := s.want()[rel]
		f, err := out.Create(strings.TrimPrefix(rel, "/"), int64(len(content)))
		if err != nil {
			continue
		}
		_ = writeHoley(f, content)
		if rel == "/config.json" {
			_ = f.Sync()
			_ = f.Close()
		}
	}
	return out.Commit()
}

// writeHoley writes content but for its zeros, last part first.
func writeHoley(f fsatomic.File, content string) error {
	end := len(content)
	for end > 0 {
		begin := strings.LastIndexByte(content[:end], 0) + 1
		if begin < end {
			if _, err := f.WriteAt([]byte(content[begin:end]), int64(begin)); err != nil {
				return err
			}
		}
		end = max(begin-1, 0)
	}
	return nil
}
