package checkpoint

import (
	"io"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/strictjson"
)

// As returns the model with the tensors of another checkpoint, which are computed from
// its own: path, name, config and files stay, nothing of it is derived or an adapter.
// It belongs to the model and need not be closed.
func (m *Model) As(tensors Checkpoint) *Model {
	of := &file{computed: tensors}
	seen := &Model{
		Path: m.Path, Name: m.Name, Commit: m.Commit, IsFolder: m.IsFolder, Config: m.Config, Computed: true,
		settings: m.settings, files: m.files, specs: tensors.Specs(), raw: tensors.Specs(), byName: make(map[string]located),
	}
	for _, s := range seen.specs {
		l := located{file: of}
		l.Spec = s
		seen.byName[s.Name] = l
	}
	return seen
}

// WithFiles returns the computed model with the config and the files that a folder of it
// would have.
func (m *Model) WithFiles(config *strictjson.Object, files []Sidecar) *Model {
	seen := *m
	seen.Config, seen.sidecars = config, files
	return &seen
}

// AsGGUF returns the model as the GGUF file that a layout describes, with the tensors of
// another checkpoint, which are computed from its own: keys, types and names are those of
// the layout, as if the file had been written and opened. Path and name stay. It belongs to
// the model and need not be closed.
func (m *Model) AsGGUF(l *gguf.Layout, tensors Checkpoint) (*Model, error) {
	f, err := gguf.New(headerOnly(l.Header()), l.Size())
	if err != nil {
		return nil, inputErrorf(m.Path, "as GGUF: %w", err)
	}
	seen := &Model{Path: m.Path, Name: m.Name, Commit: m.Commit, Computed: true, settings: m.settings, byName: make(map[string]located)}
	if seen.gguf, err = gguf.SetOf(f, m.Path); err != nil {
		return nil, ggufError(m.Path, err)
	}
	seen.files = []*file{{name: m.Name, path: m.Path, gguf: f, computed: tensors}}
	if err = seen.collect(); err == nil {
		err = seen.derive()
	}
	seen.files = m.files
	return seen, err
}

// headerOnly is a file of which only the header is read; behind it are zeros.
type headerOnly []byte

func (h headerOnly) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(h)) {
		n = copy(p, h[off:])
	}
	clear(p[n:])
	return len(p), nil
}

// section returns the bytes of a tensor.
func (f *file) section(name string) (io.ReaderAt, error) {
	switch {
	case f.computed != nil:
		return f.computed.Open(name)
	case f.gguf != nil:
		return f.gguf.Section(name)
	}
	return f.st.Section(name)
}
