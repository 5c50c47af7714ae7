package checkpoint

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/safetensors"
)

// GGUFOptions says over which files a layout is spread. At most one may be set; the
// zero value is one file.
type GGUFOptions struct {
	// Split cuts the tensors as llama.cpp's gguf-split does.
	Split *gguf.SplitOptions
	// Counts gives each file that many of the tensors, in order: the files of a model
	// that was split before. Its quantizer keeps them so.
	Counts []int
}

func (o GGUFOptions) isSplit() bool { return o.Split != nil || o.Counts != nil }

// NewGGUFLayout places the tensors, in the order given, in one GGUF file or in
// several. One file is written to a path that ends in .gguf, several to a folder,
// which appears as a whole: NAME-00001-of-00002.gguf and so on, NAME being the
// folder's own.
//
// To a [Sink] a tensor in blocks is rows of bytes, U8, as [File.Tensors] gives it; the
// type in the file is that of the spec. Nothing is added to the keys but those of a
// split: a file with a key for provenance would differ from the reference's. What is
// known only when the data are written is declared as a string of the same length,
// for [Sink.Commit] to replace.
func NewGGUFLayout(path string, specs []gguf.Spec, keys *gguf.Metadata, o GGUFOptions) (*Layout, error) {
	l := &Layout{Path: path, IsFolder: o.isSplit()}
	if isFile := strings.HasSuffix(path, ggufExt); isFile == l.IsFolder {
		return nil, fmt.Errorf("laying out %s: one GGUF file ends in %s, a split model is a folder", path, ggufExt)
	}
	layouts, err := o.layouts(specs, keys)
	if err != nil {
		return nil, fmt.Errorf("laying out %s: %w", filepath.Base(path), err)
	}
	for i, g := range layouts {
		name := filepath.Base(path)
		if l.IsFolder {
			name = gguf.ShardName(name, i, len(layouts))
		}
		f, err := newGGUFFile(g, i == 0)
		if err != nil {
			return nil, fmt.Errorf("laying out %s: %w", name, err)
		}
		l.Files = append(l.Files, File{Name: name, layout: f})
	}
	return l, l.checkUnique()
}

func (o GGUFOptions) layouts(specs []gguf.Spec, keys *gguf.Metadata) ([]*gguf.Layout, error) {
	switch {
	case o.Split != nil && o.Counts != nil:
		return nil, errors.New("the options Split and Counts are both set")
	case o.Split != nil:
		return gguf.Split(keys, specs, *o.Split, gguf.LayoutOptions{})
	case o.Counts != nil:
		return gguf.Distribute(keys, specs, o.Counts, gguf.LayoutOptions{})
	}
	l, err := gguf.NewLayout(keys, specs, gguf.LayoutOptions{})
	return []*gguf.Layout{l}, err
}

// GGUF returns the layout of a GGUF file with the types that its tensors have there,
// or nil for a file of another format.
func (f *File) GGUF() *gguf.Layout {
	if g, ok := f.layout.(*ggufLayout); ok {
		return g.Layout
	}
	return nil
}

// ggufLayout is the layout of a GGUF file, its tensors as they are stored.
type ggufLayout struct {
	*gguf.Layout
	stored []safetensors.Tensor
	first  bool // of a split model: has the keys
}

func newGGUFFile(l *gguf.Layout, first bool) (*ggufLayout, error) {
	g := &ggufLayout{Layout: l, first: first}
	for _, t := range l.Tensors() {
		spec, err := StoredSpec(t.Spec)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		g.stored = append(g.stored, safetensors.Tensor{Spec: spec, Offset: t.Offset})
	}
	return g, nil
}

// Tensors returns the tensors as they are stored.
func (l *ggufLayout) Tensors() []safetensors.Tensor { return l.stored[:len(l.stored):len(l.stored)] }

// headerWith returns the header with the text that some keys have got meanwhile. The
// other files of a split model have none of them.
func (l *ggufLayout) headerWith(final map[string]string) ([]byte, error) {
	keys := l.Metadata().Clone()
	for key, text := range final {
		if !l.first {
			break
		}
		if !keys.Replace(key, gguf.ValueOf(text)) {
			return nil, fmt.Errorf("key %q was not declared", key)
		}
	}
	return l.HeaderWith(keys)
}
