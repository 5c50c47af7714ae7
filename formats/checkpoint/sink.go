package checkpoint

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/saferead"
)

// Sink is a layout being written. WriteAt is safe for concurrent use; nothing
// is visible at the layout's path before Commit has returned.
type Sink struct {
	layout *Layout
	out    *fsatomic.Output
	files  []fsatomic.File
	places map[string]*place

	mu      sync.Mutex
	failure error               // the first of WriteAt
	back    map[string]*os.File // files opened for reading back, by path

	every   int64        // bytes between two records of what is complete
	written atomic.Int64 // since the last
	notes   []string     // parts not yet recorded
}

// place is where one tensor goes and what of it is there already.
type place struct {
	safetensors.Tensor
	file     fsatomic.File
	fileName string
	mu       sync.Mutex
	done     extents
}

// Create makes the files of a layout, at their full size and empty. It refuses
// what exists unless force is set, and a disk that is too small.
func Create(fs fsatomic.FS, l *Layout, force bool) (*Sink, error) {
	out, err := fsatomic.New(fs, l.Path, l.kind(), force)
	if err != nil {
		return nil, err
	}
	s := newSink(l, out)
	if err := s.out.CheckSpace(s.layout.Size()); err != nil {
		return nil, joinAbort(err, out)
	}
	if err := s.create(); err != nil {
		return nil, joinAbort(err, out)
	}
	return s, nil
}

func newSink(l *Layout, out *fsatomic.Output) *Sink {
	return &Sink{layout: l, out: out, places: make(map[string]*place), back: make(map[string]*os.File)}
}

// kind is what the output of the layout is.
func (l *Layout) kind() fsatomic.Kind {
	if l.IsFolder {
		return fsatomic.KindDir
	}
	return fsatomic.KindFile
}

// create makes the files, or opens those that an earlier run has made.
func (s *Sink) create() error {
	for i := range s.layout.Files {
		lf := &s.layout.Files[i]
		name := lf.Name
		if !s.layout.IsFolder {
			name = ""
		}
		f, err := s.out.Create(name, lf.Size())
		if err != nil {
			return err
		}
		s.files = append(s.files, f)
		for _, t := range lf.Tensors() {
			s.places[t.Name] = &place{file: f, fileName: lf.Name, Tensor: t}
		}
	}
	return nil
}

// joinAbort removes what was begun and returns the first error.
func joinAbort(err error, out *fsatomic.Output) error {
	if aerr := out.Abort(); aerr != nil {
		return fmt.Errorf("%w (and removing the partial output: %v)", err, aerr)
	}
	return err
}

// WriteAt writes bytes of a tensor, only inside its planned range and nowhere
// twice. Files start out as holes, so a run of zeros is not written: a sparse
// input gives a sparse output.
//
// The first failure of any call is remembered, and Commit returns it.
func (s *Sink) WriteAt(name string, p []byte, off int64) error {
	err := s.writeAt(name, p, off)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.failure == nil {
			s.failure = err
		}
	}
	return err
}

func (s *Sink) writeAt(name string, p []byte, off int64) error {
	pl, ok := s.places[name]
	if !ok {
		return fmt.Errorf("writing %q: not in the layout", name)
	}
	if off < 0 || off > pl.Size()-int64(len(p)) {
		return fmt.Errorf("writing %q: %d bytes at %d are outside its %d bytes", name, len(p), off, pl.Size())
	}
	for from, to := range withoutHoles(p) {
		if _, err := pl.file.WriteAt(p[from:to], pl.Offset+off+int64(from)); err != nil {
			return fmt.Errorf("writing %q: %w", name, err)
		}
	}
	s.written.Add(int64(len(p)))
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if !pl.done.add(off, off+int64(len(p))) {
		return fmt.Errorf("writing %q: bytes [%d, %d) are written twice", name, off, off+int64(len(p)))
	}
	return nil
}

// holeSize bytes of zeros at a time are left out.
const holeSize = 256 << 10

// withoutHoles yields the ranges of p that have to be written.
func withoutHoles(p []byte) iter.Seq2[int, int] {
	return func(yield func(from, to int) bool) {
		from := 0
		for at := 0; at < len(p); at += holeSize {
			end := min(at+holeSize, len(p))
			if !allZero(p[at:end]) {
				continue
			}
			if from < at && !yield(from, at) {
				return
			}
			from = end
		}
		if from < len(p) {
			yield(from, len(p))
		}
	}
}

// zeros is compared with in blocks; bytes.Equal runs at the memory's speed.
var zeros [64 << 10]byte

// allZero reports whether p holds nothing but zero bytes; on weights it stops
// in the first block.
func allZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// Open gives the bytes of a tensor as they are in the partial output, for
// checking them before Commit.
func (s *Sink) Open(name string) (io.ReaderAt, error) {
	pl, ok := s.places[name]
	if !ok {
		return nil, fmt.Errorf("reading back %q: not in the layout", name)
	}
	path := s.out.Partial()
	if s.layout.IsFolder {
		path = filepath.Join(path, pl.fileName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.back[path]
	if !ok {
		// What waits in memory is not in the file yet.
		err := pl.file.Sync()
		if err == nil {
			f, err = os.Open(path)
		}
		if err != nil {
			return nil, fmt.Errorf("reading back %q: %w", name, err)
		}
		s.back[path] = f
	}
	return io.NewSectionReader(f, pl.Offset, pl.Size()), nil
}

// closeBack closes what Open has opened.
func (s *Sink) closeBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, f := range s.back {
		f.Close() // only read from
		delete(s.back, path)
	}
}

// Commit writes headers and side files, and puts the whole in its place. The
// metadata of the layout may have got other values of the same length
// meanwhile; of a GGUF layout only those that have are given, which must be
// strings. It fails, and leaves nothing, if any planned byte is missing.
func (s *Sink) Commit(metadata map[string]string) error {
	return CommitAll(Finished{s, metadata})
}

// Finished is a sink that everything was written to, with its final metadata.
type Finished struct {
	Sink     *Sink
	Metadata map[string]string
}

// CommitAll is [Sink.Commit] for outputs that belong together: all of them appear, in
// this order, or none. See [fsatomic.CommitAll].
func CommitAll(all ...Finished) error {
	outputs := make([]*fsatomic.Output, len(all))
	for i, f := range all {
		outputs[i] = f.Sink.out
	}
	for _, f := range all {
		f.Sink.closeBack()
		err := f.Sink.finish(f.Metadata)
		if err == nil {
			continue
		}
		for _, out := range outputs {
			err = joinAbort(err, out)
		}
		return err
	}
	return fsatomic.CommitAll(outputs...)
}

func (s *Sink) finish(metadata map[string]string) error {
	if s.failure != nil {
		return s.failure
	}
	for i := range s.layout.Files {
		lf := &s.layout.Files[i]
		for _, spec := range lf.Tensors() {
			if !s.places[spec.Name].done.covers(spec.Size()) {
				return fmt.Errorf("tensor %q is incomplete", spec.Name)
			}
		}
		header, err := lf.layout.headerWith(metadata)
		if err != nil {
			return fmt.Errorf("writing the header of %s: %w", lf.Name, err)
		}
		if _, err := s.files[i].WriteAt(header, 0); err != nil {
			return fmt.Errorf("writing the header of %s: %w", lf.Name, err)
		}
	}
	for _, sc := range s.layout.Sidecars {
		if err := s.writeSidecar(sc); err != nil {
			return fmt.Errorf("writing %s: %w", sc.Name, err)
		}
	}
	return nil
}

// writeSidecar copies or writes one side file at its planned size.
func (s *Sink) writeSidecar(sc Sidecar) error {
	f, err := s.out.Create(sc.Name, sc.Size)
	if err != nil {
		return err
	}
	if sc.Source != "" {
		src, size, err := saferead.OpenRegular(sc.Source)
		if err != nil {
			return asInputError(sc.Source, err)
		}
		defer src.Close()
		n, err := io.Copy(io.NewOffsetWriter(f, 0), io.LimitReader(src, sc.Size))
		if err == nil && (n != sc.Size || size != sc.Size) {
			err = inputErrorf(sc.Source, "the file changed while it was read")
		}
		return err
	}
	data := sc.Data
	if sc.Final != nil {
		data = sc.Final()
	}
	if int64(len(data)) != sc.Size {
		return fmt.Errorf("%d bytes instead of the planned %d", len(data), sc.Size)
	}
	_, err = f.WriteAt(data, 0)
	return err
}

// Abort removes everything written so far.
func (s *Sink) Abort() error {
	s.closeBack()
	return s.out.Abort()
}
