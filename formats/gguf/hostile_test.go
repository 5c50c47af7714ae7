package gguf_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/saferead"
)

const hostile = "../../testdata/hostile"

// hostileCases returns the cases of this format; other packages test the rest.
func hostileCases(t testing.TB) []struct{ File, Format, Expected, Level, Reason string } {
	t.Helper()
	var manifest struct {
		Cases []struct{ File, Format, Expected, Level, Reason string }
	}
	if err := json.Unmarshal(readFile(t, hostile+"/manifest.json"), &manifest); err != nil {
		t.Fatal(err)
	}
	cases := manifest.Cases[:0]
	for _, c := range manifest.Cases {
		if c.Format == "gguf" || c.Format == "sharded" && bytes.Contains([]byte(c.File), []byte("gguf")) {
			cases = append(cases, c)
		}
	}
	if len(cases) < 43 {
		t.Fatalf("%d cases, want the whole corpus", len(cases))
	}
	return cases
}

// Each file of the corpus tells one lie, or is odd but valid. As a set, a file
// gets the same verdict.
func TestHostileCorpus(t *testing.T) {
	for _, c := range hostileCases(t) {
		t.Run(c.Level+"/"+filepath.Base(c.File), func(t *testing.T) {
			s, err := gguf.OpenSet(filepath.Join(hostile, c.File))
			switch c.Expected {
			case "accept":
				if err != nil {
					t.Fatalf("refused: %v\nbut: %s", err, c.Reason)
				}
				for _, tensor := range s.Tensors() {
					sectionBytes(t, s, tensor.Name)
				}
				s.Close()
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

// seeds returns small valid files.
func seeds(t testing.TB) map[string][]byte {
	t.Helper()
	files := map[string][]byte{
		"small":  small(),
		"values": readFile(t, golden+"/python/values.gguf"),
	}
	for _, c := range hostileCases(t) {
		if c.Expected == "accept" && c.Format == "gguf" {
			files[c.File] = readFile(t, filepath.Join(hostile, c.File))
		}
	}
	return files
}

// No beginning of a file is a file, unless it only lacks the last padding.
func TestHostileTruncations(t *testing.T) {
	for name, data := range seeds(t) {
		f := mustOpen(t, data)
		end := f.DataOffset()
		for _, s := range f.Tensors() {
			end = s.End()
		}
		for n := range data {
			_, err := open(data[:n])
			if int64(n) >= end {
				if err != nil {
					t.Errorf("%s: refused with %d of %d bytes, %d used: %v", name, n, len(data), end, err)
				}
				continue
			}
			if err == nil {
				t.Errorf("%s: accepted with %d of %d bytes", name, n, len(data))
				continue
			}
			checkFormatError(t, err, "")
		}
	}
}

// Any verdict will do, but no panic and no memory that the file does not
// explain, and what is accepted must be readable.
func TestHostileBitFlips(t *testing.T) {
	for name, data := range seeds(t) {
		for i := range min(len(data), 512) {
			for bit := range 8 {
				flipped := bytes.Clone(data)
				flipped[i] ^= 1 << bit
				var f *gguf.File
				var err error
				if took := allocated(func() { f, err = open(flipped) }); took > 1<<20 {
					t.Errorf("%s: bit %d of byte %d takes %d bytes of memory", name, bit, i, took)
				}
				if err != nil {
					checkFormatError(t, err, "")
					continue
				}
				for _, s := range f.Tensors() {
					sectionBytes(t, f, s.Name)
				}
				describe(f.Metadata())
			}
		}
	}
}

// sparse makes a file that begins with data, then has a hole, up to a terabyte.
func sparse(t *testing.T, data []byte) string {
	t.Helper()
	path := writeTemp(t, data)
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Skipf("no sparse file of a terabyte here: %v", err)
	}
	return path
}

// Claims that the size of the file would allow must not cost what they claim.
func TestHostileSparse(t *testing.T) {
	str, u8, array := uint32(gguf.String), uint32(gguf.Uint8), uint32(gguf.Array)
	nearly := uint64(99_999_900) // with what is before it, nearly the limit of the header
	tests := []struct {
		name   string
		file   *builder
		want   string
		memory uint64
	}{
		{"tensors", header(1<<40, 0), "1099511627776 tensors are more than", 1 << 20},
		{"tensors that fit", header(1<<30, 0), "1073741824 tensors are above the limit of 1048576", 1 << 20},
		{"keys that fit", header(0, 1<<30), "1073741824 keys are above the limit of 65536", 1 << 20},
		{"zeros for tensors", header(1<<20, 0), "tensor name is empty", 1 << 20},
		{"zeros for keys", header(0, 1<<16), "key is empty", 1 << 20},
		{"key", header(0, 1).put(uint64(1 << 30)), "header is above the limit of 100000000 bytes", 1 << 20},
		{"string", key("k").put(str, uint64(1<<30)), "header is above the limit", 1 << 20},
		{"array of numbers", key("k").put(array, u8, uint64(1<<30)), "header is above the limit", 1 << 20},
		{"array of strings", key("k").put(array, str, uint64(1<<30)), "header is above the limit", 1 << 20},
		{"string in an array", key("k").put(array, str, uint64(1), uint64(1<<30)), "header is above the limit", 1 << 20},
		// Twice, while the pieces are joined, and a little for the last pieces.
		{"string that fits", header(0, 2).put("k", str, nearly), "key is empty", 2*nearly + 8<<20},
		{"array that fits", header(0, 2).put("k", array, u8, nearly), "key is empty", 2*nearly + 8<<20},
		// The mark of every 32nd string comes on top, in memory that doubles.
		{"strings that fit", header(0, 2).put("k", array, str, nearly/8), "key is empty", 2*nearly + 16<<20},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if testing.Short() && test.memory > 8<<20 {
				t.Skip("reads 100 MB")
			}
			path := sparse(t, test.file.Bytes())
			start := time.Now()
			var err error
			took := allocated(func() { _, err = gguf.Open(path) })
			checkFormatError(t, err, test.want)
			if took > test.memory {
				t.Errorf("took %d bytes of memory, want at most %d", took, test.memory)
			}
			limit := 5 * time.Second
			if test.memory > 8<<20 { // 100 MB are looked at, perhaps by a race detector on a busy machine
				limit = time.Minute
			}
			if d := time.Since(start); d > limit {
				t.Errorf("took %v", d)
			}
		})
	}
}

// A header may be as long as the limit and not a byte longer, whatever it ends
// with.
func TestHeaderAtTheLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 100 MB")
	}
	for _, test := range []struct {
		name  string
		start *builder // of a string that fills the header
		last  *builder
	}{
		{"tensor", header(1, 1), new(builder).entry("a", []int64{0}, gguf.F32, 0)},
		{"number", header(0, 2), new(builder).put("n", uint32(gguf.Uint64), uint64(1))},
		{"strings", header(0, 2), new(builder).put("n", uint32(gguf.Array), uint32(gguf.String), uint64(2), "ab", "c")},
	} {
		test.start.put("k", uint32(gguf.String))
		for over := range 2 {
			n := 100_000_000 - test.start.Len() - 8 - test.last.Len() + over
			start := new(builder).put(test.start.Bytes(), uint64(n))
			path := sparse(t, start.Bytes())
			w, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt(test.last.Bytes(), int64(start.Len()+n)); err != nil {
				t.Fatal(err)
			}
			w.Close()
			f, err := gguf.Open(path)
			if over > 0 {
				checkFormatError(t, err, "header is above the limit of 100000000 bytes")
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
				continue
			}
			f.Close()
		}
	}
}

// A source that says it is huge, but ends, costs what it has.
func TestHostileLyingSource(t *testing.T) {
	data := key("k").put(uint32(gguf.String), uint64(50_000_000), make([]byte, 3<<20)).Bytes()
	var err error
	took := allocated(func() { _, err = gguf.New(bytes.NewReader(data), 1<<62) })
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want an unexpected EOF", err)
	}
	if took > 6<<20 { // the 3 MiB that are there, and the next piece
		t.Errorf("took %d bytes of memory", took)
	}
}

// A tensor of a terabyte is nothing special.
func TestHugeTensor(t *testing.T) {
	path := sparse(t, one().entry("w", []int64{1 << 20, 1<<20 - 1}, gguf.I8, 0).pad(32).Bytes())
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := f.Section("w")
	if err != nil {
		t.Fatal(err)
	}
	p := []byte{1, 1, 1, 1}
	if n, err := s.ReadAt(p, s.Size()-4); n != 4 || err != nil || !bytes.Equal(p, make([]byte, 4)) {
		t.Errorf("last bytes: %d %v %v", n, err, p)
	}
}

// A file that is cut after it was opened gives an error that names the tensor,
// never zeros.
func TestCutWhileOpen(t *testing.T) {
	path := writeTemp(t, small())
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Truncate(path, f.Size()-40); err != nil {
		t.Skip(err)
	}
	s, err := f.Section("b")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.ReadAt(make([]byte, 20), 0)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Contains([]byte(err.Error()), []byte(`tensor "b": `)) {
		t.Errorf("error %v", err)
	}
}

// Errors of the source are passed on, not taken for a bad file.
func TestBrokenSource(t *testing.T) {
	broken := errors.New("input/output error")
	_, err := gguf.New(brokenReader{broken}, 1000)
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if _, ok := errors.AsType[*gguf.FormatError](err); ok {
		t.Errorf("a broken source is called a bad file: %v", err)
	}
}

type brokenReader struct{ err error }

func (r brokenReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

func TestOpenRefuses(t *testing.T) {
	if _, err := gguf.Open(t.TempDir()); !errors.Is(err, saferead.ErrNotRegular) {
		t.Errorf("folder: %v", err)
	}
	if _, err := gguf.Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	path := writeTemp(t, []byte("text"))
	_, err := gguf.Open(path)
	checkFormatError(t, err, path+`: file starts with "text"`)
}

// A header of the entries that cost most memory per byte must not take more
// than 12 times its size, nor long. What the list of keys takes on top has a
// limit of its own: 65536 times a pair of some 90 bytes and its place in a map,
// three times over as both grow by doubling.
func TestHeaderBloat(t *testing.T) {
	if testing.Short() {
		t.Skip("parses headers of many megabytes")
	}
	tensors := header(1<<20, 0)
	for i := range 1 << 20 {
		// Written without the builder's reflection, which takes seconds here.
		name := fmt.Sprintf("%x", i)
		b := binary.LittleEndian.AppendUint64(nil, uint64(len(name)))
		b = append(b, name...)
		b = append(b, 1, 0, 0, 0)          // one dimension
		b = append(b, make([]byte, 20)...) // of size 0, F32, offset 0
		tensors.Write(b)
	}
	keys := header(0, 1<<16)
	for i := range 1 << 16 {
		keys.put(fmt.Sprintf("%x", i), uint32(gguf.Uint8), uint8(1))
	}
	const count = 5_000_000
	texts := key("tokens").put(uint32(gguf.Array), uint32(gguf.String), uint64(count))
	texts.Write(make([]byte, 8*count))
	for name, file := range map[string]*builder{"tensors": tensors.pad(32), "keys": keys, "strings": texts} {
		data := file.Bytes()
		start := time.Now()
		var f *gguf.File
		var err error
		took := allocated(func() { f, err = open(data) })
		duration := time.Since(start)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Logf("%s: %d bytes, %v, %.1f bytes of memory a byte", name, len(data), duration, float64(took)/float64(len(data)))
		if took > 12*uint64(len(data))+32<<20 {
			t.Errorf("%s: %d bytes of memory for a header of %d", name, took, len(data))
		}
		if duration > 30*time.Second { // on the slowest machine; comparing all pairs would take hours
			t.Errorf("%s: took %v", name, duration)
		}
		_ = f.Tensors()
	}
}

// A tokenizer of a million tokens takes little more than its bytes: no string
// is kept on its own.
func TestTokensAreCompact(t *testing.T) {
	const count = 1_000_000
	file := key("tokens").put(uint32(gguf.Array), uint32(gguf.String), uint64(count))
	for i := range count {
		file.Write([]byte{8, 0, 0, 0, 0, 0, 0, 0, byte(i), byte(i >> 8), byte(i >> 16), 'a', 'b', 'c', 'd', 'e'})
	}
	data := file.Bytes()
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	f := mustOpen(t, data)
	after := live()
	// A mark of 4 bytes for every 32nd string, in a slice that doubled, and 64
	// KiB for looking at the file.
	if took, limit := int64(after-before), int64(len(data)+2*4*count/32+256<<10); took > limit {
		t.Errorf("%d bytes are held for a file of %d, want at most %d", took, len(data), limit)
	}
	tokens, _ := f.Metadata().Get("tokens")
	for _, i := range []int{0, 31, 32, 777_777, count - 1} {
		e, err := tokens.Elem(i)
		if text, _ := e.Text(); err != nil || text != string([]byte{byte(i), byte(i >> 8), byte(i >> 16)})+"abcde" {
			t.Errorf("token %d: %q %v", i, text, err)
		}
	}
	runtime.KeepAlive(f)
}
