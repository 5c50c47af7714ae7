package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/saferead"
)

const hostile = "../../testdata/hostile"

type hostileCase struct {
	File, Format, Expected, Level, Reason string
}

// hostileCases returns the cases of this format; other packages test the rest.
func hostileCases(t testing.TB) []hostileCase {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(hostile, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Cases []hostileCase }
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	var cases []hostileCase
	for _, c := range manifest.Cases {
		if c.Format == "safetensors" {
			cases = append(cases, c)
		}
	}
	if len(cases) < 40 {
		t.Fatalf("%d cases, want the whole corpus", len(cases))
	}
	return cases
}

// hostileOK returns the contents of the valid files below 2 KiB.
func hostileOK(t testing.TB) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, c := range hostileCases(t) {
		if c.Expected != "accept" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(hostile, c.File))
		if err != nil {
			t.Fatal(err)
		}
		if len(data) < 2<<10 {
			files[c.File] = data
		}
	}
	return files
}

// Each file of the corpus tells one lie, or is odd but valid.
func TestHostileCorpus(t *testing.T) {
	for _, c := range hostileCases(t) {
		t.Run(c.Level+"/"+filepath.Base(c.File), func(t *testing.T) {
			f, err := safetensors.Open(filepath.Join(hostile, c.File))
			switch c.Expected {
			case "accept":
				if err != nil {
					t.Fatalf("refused: %v\nbut: %s", err, c.Reason)
				}
				readAll(t, f)
				f.Close()
			case "reject":
				if err == nil {
					t.Fatalf("accepted, but: %s", c.Reason)
				}
				checkFormatError(t, err, "")
			default:
				t.Fatalf("unknown verdict %q", c.Expected)
			}
		})
	}
}

// readAll reads every tensor of a file.
func readAll(t *testing.T, f *safetensors.File) {
	t.Helper()
	for _, s := range f.Tensors() {
		sectionBytes(t, f, s.Name)
	}
}

func TestHostileTruncations(t *testing.T) {
	files := hostileOK(t)
	if len(files) < 10 {
		t.Fatalf("%d files", len(files))
	}
	for name, data := range files {
		for n := range data {
			_, err := open(data[:n])
			if err == nil {
				t.Errorf("%s: accepted with %d of %d bytes", name, n, len(data))
				continue
			}
			checkFormatError(t, err, "")
		}
	}
}

// Any verdict will do, but no panic, and what is accepted must be readable.
func TestHostileBitFlips(t *testing.T) {
	for _, data := range hostileOK(t) {
		for i := range min(len(data), 512) {
			for bit := range 8 {
				flipped := bytes.Clone(data)
				flipped[i] ^= 1 << bit
				f, err := open(flipped)
				if err != nil {
					checkFormatError(t, err, "")
					continue
				}
				readAll(t, f)
			}
		}
	}
}

// sparse makes a file whose header length is n and whose bytes from 8 on are
// text, then a hole, up to size.
func sparse(t *testing.T, n uint64, text string, size int64) string {
	t.Helper()
	path := writeTemp(t, append(binary.LittleEndian.AppendUint64(nil, n), text...))
	if err := os.Truncate(path, size); err != nil {
		t.Skipf("no sparse file of %d bytes here: %v", size, err)
	}
	return path
}

// allocated returns how much memory f takes, freed or not.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestHostileHeaderAtTheLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 100 MB")
	}
	const limit = 100_000_000
	for _, n := range []int{limit, limit + 1} {
		data := binary.LittleEndian.AppendUint64(make([]byte, 0, n+8), uint64(n))
		data = append(data, "{}"...)
		data = append(data, bytes.Repeat([]byte(" "), n-2)...)
		f, err := safetensors.Open(writeTemp(t, data))
		if n > limit {
			checkFormatError(t, err, "header length 100000001 is above the limit")
			continue
		}
		if err != nil {
			t.Fatalf("header of %d bytes: %v", n, err)
		}
		f.Close()
	}
}

// A claim of 100 MB over a hole of a terabyte is found out at once; one that
// starts well, after 100 MB.
func TestHostileSparse(t *testing.T) {
	tests := []struct {
		name   string
		length uint64
		text   string
		want   string
		memory uint64
	}{
		{"hole from the start", 100_000_000, "", "header starts with byte 0x00", 1 << 20},
		{"hole after white space", 100_000_000, "  \n", "header starts with byte 0x00", 1 << 20},
		{"hole after a brace", 100_000_000, "{", `unexpected '\x00'`, 300 << 20},
		{"above the limit", 100_000_001, "{}", "above the limit", 1 << 20},
		{"as long as the file", 1<<40 - 8, "{}", "above the limit", 1 << 20},
		{"no tensor claims the hole", 2, "{}", "1099511627766 bytes after the data", 1 << 20},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := sparse(t, test.length, test.text, 1<<40)
			start := time.Now()
			var err error
			took := allocated(func() { _, err = safetensors.Open(path) })
			checkFormatError(t, err, test.want)
			if took > test.memory {
				t.Errorf("took %d bytes of memory, want at most %d", took, test.memory)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// A tensor of a terabyte is nothing special.
func TestHugeTensor(t *testing.T) {
	header := `{"w":{"dtype":"U8","shape":[1048576,1048576],"data_offsets":[0,1099511627776]}}`
	path := sparse(t, uint64(len(header)), header, int64(8+len(header))+1<<40)
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := f.Section("w")
	if err != nil {
		t.Fatal(err)
	}
	p := []byte{1, 1, 1, 1}
	if n, err := s.ReadAt(p, 1<<40-4); n != 4 || err != nil || !bytes.Equal(p, make([]byte, 4)) {
		t.Errorf("last bytes: %d %v %v", n, err, p)
	}
}

func TestHostileLinks(t *testing.T) {
	dir := t.TempDir()
	blob := writeTemp(t, file(twoTensors, 16))
	link := filepath.Join(dir, "model.safetensors")
	if err := os.Symlink(blob, link); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	second := filepath.Join(dir, "second.safetensors")
	loop := filepath.Join(dir, "loop.safetensors")
	dangling := filepath.Join(dir, "dangling.safetensors")
	toDir := filepath.Join(dir, "folder.safetensors")
	for path, target := range map[string]string{
		second: "model.safetensors", loop: "loop.safetensors", dangling: "absent", toDir: ".",
	} {
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{link, second} {
		f, err := safetensors.Open(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		readAll(t, f)
		f.Close()
	}
	for path, want := range map[string]string{
		loop: "too many", dangling: "no such file", toDir: "folder, not a regular file",
	} {
		_, err := safetensors.Open(path)
		if err == nil {
			t.Fatalf("%s: accepted", path)
		}
		if runtime.GOOS != "windows" && !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, want %q", err, want)
		}
		checkOneLine(t, err)
	}
}

func TestHostileFolder(t *testing.T) {
	_, err := safetensors.Open(t.TempDir())
	if !errors.Is(err, saferead.ErrNotRegular) {
		t.Errorf("error %v", err)
	}
}

func TestHostileUnreadable(t *testing.T) {
	if os.Getuid() <= 0 {
		t.Skip("root and Windows ignore the mode")
	}
	path := writeTemp(t, file(twoTensors, 16))
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := safetensors.Open(path); !errors.Is(err, os.ErrPermission) {
		t.Errorf("error %v", err)
	}
}
