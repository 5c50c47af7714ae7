package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
)

// ggufExt is the extension of GGUF files.
const ggufExt = ".gguf"

// GGUF returns the files of a GGUF model with their typed keys and the type that
// each tensor is stored as, or nil for any other model. It is closed with the model.
func (m *Model) GGUF() *gguf.Set { return m.gguf }

// RefuseGGUF returns an [*InputError] if the model is a GGUF file, for those who
// look for tensors by the names and the shapes of Hugging Face: a GGUF file has
// other names, and in some families the rows of a matrix in another order, so that
// it would be misread without a word. What says what can't be done, as in "merging
// into".
func (m *Model) RefuseGGUF(what string) error {
	if m.gguf == nil {
		return nil
	}
	return inputErrorf(m.Path, "%s a GGUF file is not supported: its tensors have the names and the row order of llama.cpp, "+
		"not those of Hugging Face; 'loratool convert' makes a folder of it", what)
}

// isGGUF reports whether a file is to be read as GGUF: by its name, or by its first
// bytes where the name says nothing. A file that can't be opened is none, the next
// one to try says why.
func isGGUF(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ggufExt:
		return true
	case ".safetensors":
		return false
	}
	const magic = "GGUF"
	f, size, err := saferead.OpenRegular(path)
	if err != nil {
		return false
	}
	defer f.Close()
	start, err := saferead.New(f, size).Bytes(0, min(size, int64(len(magic))))
	return err == nil && string(start) == magic
}

// openGGUF adds all files of a GGUF model: path is that of one of them, or of a
// folder that holds exactly one model.
func (m *Model) openGGUF(path string) error {
	set, err := gguf.OpenSet(path)
	if err != nil {
		return ggufError(path, err)
	}
	m.gguf = set
	for i, path := range set.Paths() {
		f := &file{name: filepath.Base(path), path: path, gguf: set.Files()[i]}
		if f.info, err = os.Stat(path); err != nil {
			return asInputError(path, err)
		}
		m.files = append(m.files, f)
	}
	return nil
}

// ggufError says that the input is at fault. The text of an error begins with the
// path of the file concerned, which may be another one than was asked for.
func ggufError(path string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return &InputError{pe.Path, fmt.Errorf("%s: %w", pe.Op, pe.Err)}
	}
	if inner := errors.Unwrap(err); inner != nil {
		if concerned, ok := strings.CutSuffix(err.Error(), ": "+inner.Error()); ok {
			return &InputError{concerned, inner}
		}
	}
	if reason, ok := strings.CutPrefix(err.Error(), saferead.Printable(path)+": "); ok {
		err = errors.New(reason)
	}
	return &InputError{path, err}
}

// tensors returns the tensors of a file as they are stored, in the order of their
// data.
func (f *file) tensors() ([]safetensors.Tensor, error) {
	if f.gguf == nil {
		return f.st.Tensors(), nil
	}
	all := make([]safetensors.Tensor, 0, len(f.gguf.Tensors()))
	for _, t := range f.gguf.Tensors() {
		spec, err := StoredSpec(t.Spec)
		if err != nil {
			return nil, inputErrorf(f.path, "tensor %q: %w", t.Name, err)
		}
		all = append(all, safetensors.Tensor{Spec: spec, Offset: t.Offset})
	}
	return all, nil
}

// StoredSpec describes a tensor of GGUF in the words of the other containers. One
// in blocks is rows of bytes.
func StoredSpec(s gguf.Spec) (tensor.Spec, error) {
	if d, ok := s.Type.DType(); ok {
		return tensor.NewSpec(s.Name, d, s.Shape)
	}
	rows := append(tensor.Shape(nil), s.Shape...)
	rows[len(rows)-1] = s.RowSize() // there is one: a single number has no blocks
	return tensor.NewSpec(s.Name, tensor.U8, rows)
}
