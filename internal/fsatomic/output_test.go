package fsatomic_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

func TestCommit(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			dir := t.TempDir()
			s.prepare(t, realDisk{}, dir)
			fsys := faultfs.New(fsatomic.OS{}, s.injectors()...)
			if err := s.run(fsys, dir); err != nil {
				t.Fatal(err)
			}
			checkTree(t, harvest(t, realDisk{}, dir), bystander.plus(s.want().under("out")))
			if n := fsys.OpenFiles(); n != 0 {
				t.Errorf("%d files are still open", n)
			}
		})
	}
}

// TestNewRefuses has all that New must say no to, and what is there before and
// after.
func TestNewRefuses(t *testing.T) {
	const file, folder = fsatomic.KindFile, fsatomic.KindDir
	refused := func(err error) bool { return errors.As(err, new(*fsatomic.RefusedError)) }
	exists := func(err error) bool {
		return errors.As(err, new(*fsatomic.ExistsError)) && errors.Is(err, fs.ErrExist)
	}
	missing := func(err error) bool { return errors.Is(err, fs.ErrNotExist) }
	tests := []struct {
		name   string
		before tree
		target string // relative to the folder unless it is verbatim
		kind   fsatomic.Kind
		force  bool
		is     func(error) bool
		text   string // part of the message
	}{
		{"file exists", tree{"out": ""}, "out", file, false, exists, "exists"},
		{"folder exists", tree{"out/": ""}, "out", folder, false, exists, "exists"},
		{"folder exists, separator", tree{"out/": ""}, "out/", folder, false, exists, "exists"},
		{"file onto folder", tree{"out/": ""}, "out", file, false, refused, "it is a folder"},
		{"file onto folder forced", tree{"out/": ""}, "out", file, true, refused, "it is a folder"},
		{"folder onto file", tree{"out": ""}, "out", folder, false, refused, "it is a file"},
		{"folder onto file forced", tree{"out": ""}, "out", folder, true, refused, "it is a file"},
		{"file with separator", nil, "out/", file, false, refused, "it names a folder"},
		{"foreign folder", tree{"out/notes.txt": ""}, "out", folder, true, refused, "does not look like a model"},
		{"config in capitals", tree{"out/CONFIG.JSON": ""}, "out", folder, true, refused, "does not look like a model"},
		{"no folder of a module", tree{"out/config.json": "", "out/1_Pooling/notes": ""}, "out", folder, true, refused, `the folder "1_Pooling"`},
		{"folder in one of a module", tree{"out/config.json": "", "out/1_Pooling/config.json": "", "out/1_Pooling/x/": ""}, "out", folder, true, refused, `the folder "1_Pooling"`},
		{"nested folder", tree{"out/config.json": "", "out/.git/": ""}, "out", folder, true, refused, `the folder ".git"`},
		{"parent missing", nil, "no/such/out", folder, false, missing, "no/such"},
		{"parent missing forced", nil, "nowhere/out", file, true, missing, "nowhere"},
		{"parent is a file", tree{"p": ""}, "p/out", file, false,
			func(err error) bool { return errors.Is(err, syscall.ENOTDIR) }, `p"`},
		{"dot at the end", nil, "x/.", folder, true, refused, "does not name"},
		{"two dots at the end", nil, "x/..", folder, true, refused, "does not name"},
		{"two dots and separators", nil, "x/..//", folder, true, refused, "does not name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range tt.before {
				plantDeep(t, filepath.Join(dir, name), strings.HasSuffix(name, "/"), content)
			}
			before := harvest(t, realDisk{}, dir)
			out, err := fsatomic.New(fsatomic.OS{}, dir+"/"+tt.target, tt.kind, tt.force)
			if err == nil {
				t.Fatalf("New made %q", out.Partial())
			}
			if !tt.is(err) || !strings.Contains(filepath.ToSlash(err.Error()), tt.text) {
				t.Errorf("got error %q of type %T, want one with %q", err, err, tt.text)
			}
			checkTree(t, harvest(t, realDisk{}, dir), before)
		})
	}
}

func plantDeep(t *testing.T, name string, isDir bool, content string) {
	t.Helper()
	dir := filepath.Dir(name)
	if isDir {
		dir = name
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if isDir {
		return
	}
	if err := os.WriteFile(name, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestNewRefusesNames(t *testing.T) {
	names := []string{"", ".", "..", "/", "//", "./", "../", "/.", "/..", "a/..", "a/."}
	if runtime.GOOS == "windows" {
		names = append(names, `C:`, `C:\`, `a\..`)
	}
	for _, name := range names {
		for _, kind := range []fsatomic.Kind{fsatomic.KindFile, fsatomic.KindDir} {
			_, err := fsatomic.New(faultfs.NewMem(), name, kind, true)
			if !errors.As(err, new(*fsatomic.RefusedError)) {
				t.Errorf("New(%q): got error %v, want a RefusedError", name, err)
			}
		}
	}
}

// TestNewForce has the folders that may be replaced.
func TestNewForce(t *testing.T) {
	for _, old := range []tree{
		{"/": ""},
		{"/": "", "/config.json": ""},
		{"/": "", "/adapter_config.json": "", "/README.md": ""},
		{"/": "", "/x.safetensors": ""},
		{"/": "", "/x-00001-of-00002.gguf": ""},
		{"/": "", "/config.json": "", "/1_Pooling/": "", "/1_Pooling/config.json": "", "/1_Pooling/model.safetensors": ""},
	} {
		dir := t.TempDir()
		s := scenario{kind: fsatomic.KindDir, force: true, old: old}
		s.prepare(t, realDisk{}, dir)
		if err := s.run(fsatomic.OS{}, dir); err != nil {
			t.Errorf("replacing %q: %v", old, err)
		}
		checkTree(t, harvest(t, realDisk{}, dir), bystander.plus(newDir.under("out")))
	}
}

// TestCommitChecksAgain puts something at the target while the output is in the
// making.
func TestCommitChecksAgain(t *testing.T) {
	tests := []struct {
		name  string
		kind  fsatomic.Kind
		force bool
		comer tree
		want  any
	}{
		{"file", fsatomic.KindFile, false, tree{"out": "x"}, new(*fsatomic.ExistsError)},
		{"folder", fsatomic.KindDir, false, tree{"out/config.json": "x"}, new(*fsatomic.ExistsError)},
		{"folder onto file", fsatomic.KindDir, true, tree{"out": "x"}, new(*fsatomic.RefusedError)},
		{"file onto folder", fsatomic.KindFile, true, tree{"out/config.json": "x"}, new(*fsatomic.RefusedError)},
		{"folder onto foreign folder", fsatomic.KindDir, true, tree{"out/x": "x"}, new(*fsatomic.RefusedError)},
		{"folder onto empty folder", fsatomic.KindDir, false, tree{"out/": ""}, new(*fsatomic.ExistsError)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			out, err := fsatomic.New(fsatomic.OS{}, filepath.Join(dir, "out"), tt.kind, tt.force)
			if err != nil {
				t.Fatal(err)
			}
			name := "config.json"
			if tt.kind == fsatomic.KindFile {
				name = ""
			}
			if _, err := out.Create(name, 3); err != nil {
				t.Fatal(err)
			}
			for name, content := range tt.comer {
				plantDeep(t, filepath.Join(dir, name), strings.HasSuffix(name, "/"), content)
			}
			want := withFolders(tt.comer)
			if err := out.Commit(); !errors.As(err, tt.want) {
				t.Errorf("got error %v, want a %T", err, tt.want)
			}
			checkTree(t, harvest(t, realDisk{}, dir), want)
		})
	}
}

func withFolders(a tree) tree {
	full := tree{}
	for name, content := range a {
		if folder, _, ok := strings.Cut(name, "/"); ok {
			full[folder+"/"] = ""
		}
		full[name] = content
	}
	return full
}

// TestTargetVanishes removes the old output in the making of the new one.
func TestTargetVanishes(t *testing.T) {
	mem := faultfs.NewMem()
	plant(t, mem, "/", tree{"out": "old"})
	fsys := faultfs.New(mem, func(call faultfs.Call) error {
		if call.Op == faultfs.OpExchange {
			_ = mem.Remove("/out")
		}
		return nil
	})
	s := scenario{kind: fsatomic.KindFile, force: true}
	if err := s.run(fsys, "/"); err != nil {
		t.Fatal(err)
	}
	checkTree(t, harvest(t, mem, "/"), newFile.under("out"))
}

func TestCreate(t *testing.T) {
	bad := []string{"", ".", "..", "a/b/c", "a/..", "a/.", "a/", "../x", "./x", "a/x\x00", "/x", `a\b`, "c:", "a\x00", "a\nb", "\x1b[31m", "a\u0085"}
	for _, name := range bad {
		mem := faultfs.NewMem()
		out, err := fsatomic.New(mem, "/out", fsatomic.KindDir, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Create(name, 1); err == nil {
			t.Errorf("Create(%q) made a file", name)
		}
		if err := out.Commit(); err == nil {
			t.Errorf("Commit forgot that Create(%q) failed", name)
		}
		checkTree(t, harvest(t, mem, "/"), tree{})
	}
}

// TestMisuse has calls that must end in an error and no output.
func TestMisuse(t *testing.T) {
	tests := []struct {
		name string
		kind fsatomic.Kind
		call func(*fsatomic.Output) error
	}{
		{"file with a name", fsatomic.KindFile, func(o *fsatomic.Output) error {
			_, err := o.Create("x", 1)
			return err
		}},
		{"second file", fsatomic.KindFile, func(o *fsatomic.Output) error {
			_, first := o.Create("", 1)
			_, err := o.Create("", 1)
			return errors.Join(err, first)
		}},
		{"same name twice", fsatomic.KindDir, func(o *fsatomic.Output) error {
			_, first := o.Create("a", 1)
			_, err := o.Create("a", 1)
			return errors.Join(err, first)
		}},
		{"negative size", fsatomic.KindDir, func(o *fsatomic.Output) error {
			_, err := o.Create("a", -1)
			return err
		}},
		{"no file", fsatomic.KindFile, func(o *fsatomic.Output) error { return o.Commit() }},
		{"write beyond the size", fsatomic.KindFile, writeTo(8, "123456", 3)},
		{"write at a negative offset", fsatomic.KindFile, writeTo(8, "1", -1)},
		{"write at a huge offset", fsatomic.KindFile, writeTo(8, "1", 1<<63-1)},
		{"write after close", fsatomic.KindFile, func(o *fsatomic.Output) error {
			f, err := o.Create("", 1)
			if err != nil || f.Close() != nil {
				return nil
			}
			_, err = f.WriteAt([]byte("1"), 0)
			return err
		}},
		{"truncate after close", fsatomic.KindFile, func(o *fsatomic.Output) error {
			f, err := o.Create("", 1)
			if err != nil || f.Close() != nil {
				return nil
			}
			return f.Truncate(2)
		}},
		{"commit after abort", fsatomic.KindDir, func(o *fsatomic.Output) error {
			if o.Abort() != nil {
				return nil
			}
			return o.Commit()
		}},
		{"create after abort", fsatomic.KindDir, func(o *fsatomic.Output) error {
			if o.Abort() != nil {
				return nil
			}
			_, err := o.Create("a", 0)
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem := faultfs.NewMem()
			fsys := faultfs.New(mem)
			out, err := fsatomic.New(fsys, "/out", tt.kind, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.call(out); err == nil {
				t.Error("no error")
			}
			if err := out.Commit(); err == nil {
				t.Error("Commit succeeded after it")
			}
			if err := out.Abort(); err != nil {
				t.Error(err)
			}
			checkTree(t, harvest(t, mem, "/"), tree{})
			if n := fsys.OpenFiles(); n != 0 {
				t.Errorf("%d files are still open", n)
			}
		})
	}
}

func writeTo(size int64, data string, off int64) func(*fsatomic.Output) error {
	return func(o *fsatomic.Output) error {
		f, err := o.Create("", size)
		if err != nil {
			return nil
		}
		_, err = f.WriteAt([]byte(data), off)
		return err
	}
}

func TestAbortAndCommitAreFinal(t *testing.T) {
	mem := faultfs.NewMem()
	out, err := fsatomic.New(mem, "/out", fsatomic.KindFile, false)
	if err != nil {
		t.Fatal(err)
	}
	f, err := out.Create("", 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(2); err != nil {
		t.Fatal(err)
	}
	if err := out.Commit(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := out.Abort(); err != nil {
			t.Errorf("Abort after Commit: %v", err)
		}
	}
	if err := out.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit: got %v, want ErrClosed", err)
	}
	if _, err := out.Create("", 1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Create after Commit: got %v, want ErrClosed", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after Commit: %v", err)
	}
	checkTree(t, harvest(t, mem, "/"), tree{"out": "\x00\x00"})
}

// TestAbortTriesAgain repeats an Abort that failed.
func TestAbortTriesAgain(t *testing.T) {
	mem := faultfs.NewMem()
	broken := true
	out, err := fsatomic.New(faultfs.New(mem, func(call faultfs.Call) error {
		if broken && call.Op == faultfs.OpRemove {
			return syscall.EACCES
		}
		return nil
	}), "/out", fsatomic.KindDir, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Abort(); !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), out.Partial()) {
		t.Errorf("got error %v, want EACCES with the partial's name", err)
	}
	broken = false
	if err := out.Abort(); err != nil {
		t.Error(err)
	}
	checkTree(t, harvest(t, mem, "/"), tree{})
}

func TestCheckSpace(t *testing.T) {
	mem := faultfs.NewMem()
	mem.SetFree(1000)
	fsys := faultfs.New(mem)
	out, err := fsatomic.New(fsys, "/out", fsatomic.KindFile, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.CheckSpace(1000); err != nil {
		t.Error(err)
	}
	var space *fsatomic.SpaceError
	if err := out.CheckSpace(1001); !errors.As(err, &space) || space.Need != 1001 || space.Free != 1000 {
		t.Errorf("got error %v, want a SpaceError", err)
	}
	dumb := faultfs.New(mem, faultfs.FailOp(faultfs.OpFree, syscall.ENOSYS))
	out, err = fsatomic.New(dumb, "/other", fsatomic.KindFile, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.CheckSpace(1 << 60); err != nil {
		t.Errorf("a disk that does not tell: %v", err)
	}
}

// TestCheckMakesNothing guards dry runs.
func TestCheckMakesNothing(t *testing.T) {
	fsys := faultfs.New(faultfs.NewMem(), func(call faultfs.Call) error {
		if call.Op != faultfs.OpLstat && call.Op != faultfs.OpStat && call.Op != faultfs.OpReadDir {
			t.Errorf("Check called %v", call)
		}
		return nil
	})
	if err := fsatomic.Check(fsys, "/out", fsatomic.KindDir, true); err != nil {
		t.Error(err)
	}
}

func TestPartialName(t *testing.T) {
	mem := faultfs.NewMem()
	seen := map[string]bool{}
	for range 10 {
		out, err := fsatomic.New(mem, "/out", fsatomic.KindFile, false)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`^/out\.partial-[0-9a-f]{8}$`).MatchString(out.Partial()) || seen[out.Partial()] {
			t.Errorf("the partial is %q", out.Partial())
		}
		seen[out.Partial()] = true
		if out.Target() != "/out" {
			t.Errorf("the target is %q", out.Target())
		}
	}
}

func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	plant(t, realDisk{}, dir, tree{
		"out.partial-0123abcd":      "",
		"out.partial-89abcdef/":     "",
		"out.old-00000000":          "",
		"out.partial-0123abc":       "", // too short
		"out.partial-0123abcdx":     "",
		"out.partial-0123ABCD":      "",
		"out2.partial-0123abcd":     "",
		"other.out.partial-abcdabc": "",
		"out":                       "",
	})
	t.Chdir(dir)
	for prefix, target := range map[string]string{
		dir + string(filepath.Separator): filepath.Join(dir, "out"),
		"./":                             "./out/",
		"":                               "out",
	} {
		got, err := fsatomic.Leftovers(fsatomic.OS{}, target)
		if err != nil {
			t.Fatal(err)
		}
		want := prefix + "out.old-00000000 " + prefix + "out.partial-0123abcd " + prefix + "out.partial-89abcdef"
		if strings.Join(got, " ") != want {
			t.Errorf("Leftovers(%q) = %q, want %q", target, got, want)
		}
	}
	if _, err := fsatomic.Leftovers(fsatomic.OS{}, "no/out"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: got error %v", err)
	}
	if _, err := fsatomic.Leftovers(fsatomic.OS{}, ".."); !errors.As(err, new(*fsatomic.RefusedError)) {
		t.Errorf("two dots: got error %v", err)
	}
}

func TestErrorTexts(t *testing.T) {
	for want, err := range map[string]error{
		`output "x" exists`:                                                  &fsatomic.ExistsError{Path: "x"},
		`refusing output "x": why`:                                           &fsatomic.RefusedError{Path: "x", Reason: "why"},
		`output "x" needs 5 bytes and its disk has 4 free`:                   &fsatomic.SpaceError{Path: "x", Need: 5, Free: 4},
		`output "x" is complete, but removing the replaced one at "y": gone`: &fsatomic.CleanupError{Target: "x", Path: "y", Err: errors.New("gone")},
	} {
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}
