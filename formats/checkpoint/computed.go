package checkpoint

import "io"

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
