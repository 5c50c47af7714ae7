package saferead_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/loratool/loratool/internal/saferead"
)

func counting(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 31)
	}
	return p
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name         string
		size, off, n int64
		ok           bool
	}{
		{"all", 10, 0, 10, true},
		{"nothing at the end", 10, 10, 0, true},
		{"nothing of nothing", 0, 0, 0, true},
		{"one past the end", 10, 0, 11, false},
		{"starts past the end", 10, 11, 0, false},
		{"ends past the end", 10, 9, 2, false},
		{"negative offset", 10, -1, 2, false},
		{"negative length", 10, 5, -1, false},
		{"sum overflows", 10, math.MaxInt64, math.MaxInt64, false},
		{"sum overflows from inside", 10, 5, math.MaxInt64, false},
		{"largest", math.MaxInt64, 0, math.MaxInt64, true},
		{"largest, shifted", math.MaxInt64, 1, math.MaxInt64, false},
		{"negative size is none", -5, 0, 1, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := saferead.New(bytes.NewReader(nil), test.size)
			err := r.Check(test.off, test.n)
			if (err == nil) != test.ok {
				t.Errorf("error %v, want ok %v", err, test.ok)
			}
			if _, isRange := errors.AsType[*saferead.RangeError](err); !test.ok && !isRange {
				t.Errorf("error of type %T", err)
			}
		})
	}
}

// Every way to read must check its range.
func TestReadsAreChecked(t *testing.T) {
	r := saferead.New(bytes.NewReader(counting(20)), 10) // more is there than may be read
	_, bytesErr := r.Bytes(5, 6)
	_, sectionErr := r.Section(5, 6)
	for name, err := range map[string]error{
		"Bytes": bytesErr, "Section": sectionErr, "ReadFull": r.ReadFull(make([]byte, 6), 5),
	} {
		if _, ok := errors.AsType[*saferead.RangeError](err); !ok {
			t.Errorf("%s: error %v, want a RangeError", name, err)
		}
	}
}

func TestBytes(t *testing.T) {
	const mib = 1 << 20
	data := counting(3*mib + 5)
	r := saferead.New(bytes.NewReader(data), int64(len(data)))
	for _, n := range []int{0, 1, mib - 1, mib, mib + 1, 2 * mib, 3 * mib, 3*mib + 1} {
		for _, off := range []int{0, 4} {
			got, err := r.Bytes(int64(off), int64(n))
			if err != nil || !bytes.Equal(got, data[off:off+n]) {
				t.Errorf("%d bytes at %d: %d bytes, %v", n, off, len(got), err)
			}
		}
	}
}

// A source that says it has exabytes but ends early must not cost more memory
// than it has bytes, plus one piece.
func TestBytesOfLyingSource(t *testing.T) {
	for _, have := range []int{0, 100, 1<<20 + 1, 5 << 20} {
		r := saferead.New(bytes.NewReader(counting(have)), math.MaxInt64)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := r.Bytes(0, math.MaxInt/2)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: error %v, want an unexpected EOF", have, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > uint64(have)+2<<20 {
			t.Errorf("%d bytes: took %d bytes of memory", have, took)
		}
	}
}

func TestReadFull(t *testing.T) {
	data := counting(100)
	r := saferead.New(bytes.NewReader(data[:60]), 100)
	p := make([]byte, 10)
	if err := r.ReadFull(p, 50); err != nil || !bytes.Equal(p, data[50:60]) {
		t.Errorf("inside: %v %v", p, err)
	}
	for _, off := range []int64{51, 59, 60, 90} {
		if err := r.ReadFull(p, off); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("at %d: %v, want an unexpected EOF", off, err)
		}
	}
	if err := r.ReadFull(nil, 100); err != nil {
		t.Errorf("nothing at the end: %v", err)
	}
}

// readerAt turns a function into an io.ReaderAt.
type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestOddSources(t *testing.T) {
	broken := errors.New("input/output error")
	tests := []struct {
		name string
		read readerAt
		want error
	}{
		{"full with EOF", func(p []byte, _ int64) (int, error) { return len(p), io.EOF }, nil},
		{"short with EOF", func(p []byte, _ int64) (int, error) { return len(p) - 1, io.EOF }, io.ErrUnexpectedEOF},
		{"short without an error", func(p []byte, _ int64) (int, error) { return len(p) - 1, nil }, io.ErrUnexpectedEOF},
		{"nothing without an error", func([]byte, int64) (int, error) { return 0, nil }, io.ErrUnexpectedEOF},
		{"error", func([]byte, int64) (int, error) { return 0, broken }, broken},
		{"short with an error", func(p []byte, _ int64) (int, error) { return 1, broken }, broken},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := saferead.New(test.read, 100)
			if err := r.ReadFull(make([]byte, 4), 0); !errors.Is(err, test.want) {
				t.Errorf("ReadFull: %v, want %v", err, test.want)
			}
			if _, err := r.Bytes(0, 4); !errors.Is(err, test.want) {
				t.Errorf("Bytes: %v, want %v", err, test.want)
			}
			s, err := r.Section(10, 10)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.ReadAt(make([]byte, 4), 0); !errors.Is(err, test.want) {
				t.Errorf("Section: %v, want %v", err, test.want)
			}
		})
	}
}

func TestSection(t *testing.T) {
	data := counting(100)
	r := saferead.New(bytes.NewReader(data), 100)
	if r.Size() != 100 {
		t.Errorf("size %d", r.Size())
	}
	for _, bounds := range [][2]int64{{0, 100}, {10, 50}, {99, 1}, {0, 0}, {100, 0}} {
		off, n := bounds[0], bounds[1]
		s, err := r.Section(off, n)
		if err != nil {
			t.Fatal(err)
		}
		if s.Size() != n {
			t.Errorf("%v: size %d", bounds, s.Size())
		}
		if err := iotest.TestReader(io.NewSectionReader(s, 0, n), data[off:off+n]); err != nil {
			t.Errorf("%v: %v", bounds, err)
		}
		if n, err := s.ReadAt(make([]byte, 1), n); n != 0 || err != io.EOF {
			t.Errorf("%v: behind the end: %d %v", bounds, n, err)
		}
	}
}

// The end of the section is EOF; an earlier end of the source is not.
func TestSectionOfShrunkSource(t *testing.T) {
	s, err := saferead.New(bytes.NewReader(counting(15)), 100).Section(10, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{6, 10, 11} {
		got, err := s.ReadAt(make([]byte, n), 0)
		if got != 5 || !errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
			t.Errorf("reading %d: %d %v", n, got, err)
		}
	}
	if _, err := s.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("before the start: %v", err)
	}
}
