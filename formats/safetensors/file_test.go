package safetensors_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

const twoTensors = `{"__metadata__":{"format":"pt","\u00e9":"a\nb"},` +
	`"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},` +
	`"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`

func TestFile(t *testing.T) {
	f := mustOpen(t, file(twoTensors, 16))
	start := int64(8 + len(twoTensors))
	want := []safetensors.Tensor{
		{Spec: spec(t, "a", tensor.F32), Offset: start},
		{Spec: spec(t, "b", tensor.BF16, 2, 3), Offset: start + 4},
	}
	want[0].Shape = tensor.Shape{}
	if got := f.Tensors(); !reflect.DeepEqual(got, want) {
		t.Errorf("tensors %v, want %v", got, want)
	}
	if got, ok := f.Lookup("b"); !ok || !reflect.DeepEqual(got, want[1]) {
		t.Errorf("lookup %v %v, want %v", got, ok, want[1])
	}
	if got, ok := f.Lookup("c"); ok {
		t.Errorf("lookup of an absent tensor gives %v", got)
	}
	if got, want := f.Metadata(), (map[string]string{"format": "pt", "é": "a\nb"}); !reflect.DeepEqual(got, want) {
		t.Errorf("metadata %q, want %q", got, want)
	}
	if f.DataOffset() != start || f.Size() != start+16 {
		t.Errorf("data at %d of %d, want %d of %d", f.DataOffset(), f.Size(), start, start+16)
	}
	if err := f.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

// A copy of a file must be able to tell no metadata from an empty map.
func TestFileMetadataAbsentOrEmpty(t *testing.T) {
	if m := mustOpen(t, file(`{}`, 0)).Metadata(); m != nil {
		t.Errorf("metadata %v, want nil", m)
	}
	if m := mustOpen(t, file(`{"__metadata__":{}}`, 0)).Metadata(); m == nil || len(m) != 0 {
		t.Errorf("metadata %v, want an empty map", m)
	}
}

func TestFileTensorsDoNotGrowInPlace(t *testing.T) {
	f := mustOpen(t, file(twoTensors, 16))
	_ = append(f.Tensors()[:1:1], safetensors.Tensor{Offset: 1})
	if f.Tensors()[1].Offset == 1 {
		t.Error("an append changed the file's own slice")
	}
}

func TestSection(t *testing.T) {
	data := file(twoTensors, 16)
	s, err := mustOpen(t, data).Section("b")
	if err != nil {
		t.Fatal(err)
	}
	want := data[len(data)-12:]
	if s.Size() != 12 {
		t.Errorf("size %d, want 12", s.Size())
	}
	tests := []struct {
		name    string
		off     int64
		n       int
		want    []byte
		wantErr error
	}{
		{"all", 0, 12, want, nil},
		{"part", 3, 4, want[3:7], nil},
		{"last byte", 11, 1, want[11:], nil},
		{"nothing", 5, 0, nil, nil},
		{"past the end", 8, 5, want[8:], io.EOF},
		{"at the end", 12, 1, nil, io.EOF},
		{"far behind", 1 << 62, 1, nil, io.EOF},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := make([]byte, test.n)
			n, err := s.ReadAt(p, test.off)
			if err != test.wantErr {
				t.Errorf("error %v, want %v", err, test.wantErr)
			}
			if !bytes.Equal(p[:n], test.want) {
				t.Errorf("bytes %v, want %v", p[:n], test.want)
			}
		})
	}
	if n, err := s.ReadAt(make([]byte, 1), -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("reading before the start gives %d bytes and %v", n, err)
	}
	if _, err := mustOpen(t, data).Section("c\n"); err == nil || !strings.Contains(err.Error(), `no tensor "c\n"`) {
		t.Errorf("section of an absent tensor: %v", err)
	}
}

func TestSectionOfEmptyTensor(t *testing.T) {
	f := mustOpen(t, file(`{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, 0))
	s, err := f.Section("w")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.ReadAt(make([]byte, 1), 0); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v, want EOF", n, err)
	}
}

// A file that is cut while it is in use must not read as zeros, nor as if the
// tensor just ended.
func TestSectionTruncatedMeanwhile(t *testing.T) {
	data := file(twoTensors, 16)
	path := writeTemp(t, data)
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := f.Section("b")
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int64{1, 6, 12, int64(len(data))} {
		if err := os.Truncate(path, int64(len(data))-cut); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 12)
		n, err := s.ReadAt(p, 0)
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), `tensor "b"`) {
			t.Errorf("cut by %d: error %v, want an unexpected EOF of tensor b", cut, err)
			continue
		}
		checkOneLine(t, err)
		if want := int(max(0, 12-cut)); n != want {
			t.Errorf("cut by %d: %d bytes, want %d", cut, n, want)
		}
		if n, err := s.ReadAt(p, 11); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut by %d: last byte: %d, %v", cut, n, err)
		}
		if _, err := s.ReadAt(make([]byte, 13), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut by %d: reading over the end: %v", cut, err)
		}
	}
}

// A source may not have the size it was said to have.
func TestNewShortSource(t *testing.T) {
	data := file(twoTensors, 16)
	for _, have := range []int{0, 5, 8, 20} {
		_, err := safetensors.New(bytes.NewReader(data[:have]), int64(len(data)))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: error %v, want an unexpected EOF", have, err)
		}
	}
}

// failingReader fails with err from a given offset on.
type failingReader struct {
	data []byte
	from int64
	err  error
}

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.from {
		return 0, r.err
	}
	return copy(p, r.data[off:]), nil
}

// An I/O error is not a malformed file.
func TestReadErrors(t *testing.T) {
	data := file(twoTensors+strings.Repeat(" ", 1000), 16)
	broken := errors.New("input/output error")
	for _, from := range []int64{0, 600} {
		_, err := safetensors.New(failingReader{data, from, broken}, int64(len(data)))
		if !errors.Is(err, broken) {
			t.Errorf("from %d: %v, want %v", from, err, broken)
		}
		if _, ok := errors.AsType[*safetensors.FormatError](err); ok {
			t.Errorf("from %d: %v is a FormatError", from, err)
		}
	}
	f, err := safetensors.New(failingReader{data, int64(len(data) - 12), broken}, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := f.Section("b")
	if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, broken) || !strings.Contains(err.Error(), `tensor "b"`) {
		t.Errorf("error %v", err)
	}
}

func TestOpenOwnsTheFile(t *testing.T) {
	f, err := safetensors.Open(writeTemp(t, file(twoTensors, 16)))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := f.Section("a")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(make([]byte, 4), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reading after Close: %v", err)
	}
}

func TestOpenNamesThePath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bad.safetensors")
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := safetensors.Open(path)
	checkFormatError(t, err, "file has 5 bytes")
	if !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("error %q does not start with the path", err)
	}
	_, err = safetensors.Open(filepath.Join(dir, "absent\n.safetensors"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("error %v, want that the file does not exist", err)
	}
	checkOneLine(t, err)
}

func TestFileConcurrentUse(t *testing.T) {
	data := file(twoTensors, 16)
	f := mustOpen(t, data)
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 100 {
				s, err := f.Section("b")
				if err != nil {
					t.Error(err)
					return
				}
				p := make([]byte, 12)
				if _, err := s.ReadAt(p, 0); err != nil || !bytes.Equal(p, data[len(data)-12:]) {
					t.Errorf("read %v, %v", p, err)
				}
				if f.Metadata()["format"] != "pt" {
					t.Error("metadata changed")
				}
			}
		})
	}
	users.Wait()
}
