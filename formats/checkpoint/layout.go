package checkpoint

import (
	"fmt"
	"maps"
	"path/filepath"
	"sort"
	"strings"

	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// Layout is a new checkpoint decided to the byte: its files, the place of every
// tensor, and the files beside them.
type Layout struct {
	Path     string
	IsFolder bool
	Files    []File
	Sidecars []Sidecar
}

// File is one weight file.
type File struct {
	Name   string
	layout container
}

// container is the layout of a file of some format.
type container interface {
	Tensors() []safetensors.Tensor                      // as they are stored, in the order of the data
	Size() int64                                        // in bytes; what is in no tensor and no header is zeros
	headerWith(final map[string]string) ([]byte, error) // the beginning of the file
}

var (
	_ container = safetensorsLayout{}
	_ container = (*ggufLayout)(nil)
)

// safetensorsLayout is the layout of a safetensors file.
type safetensorsLayout struct{ *safetensors.Layout }

func (l safetensorsLayout) headerWith(metadata map[string]string) ([]byte, error) {
	return l.HeaderWith(withFormat(metadata))
}

// Tensors returns the tensors in the order of the data.
func (f *File) Tensors() []safetensors.Tensor { return f.layout.Tensors() }

// Size returns the size of the file in bytes.
func (f *File) Size() int64 { return f.layout.Size() }

// Sidecar is a file beside the weights: copied from Source, or Data written as
// it is. Final replaces Data, at the same length, by what is only known when
// the weights are written.
type Sidecar struct {
	Name   string
	Source string
	Data   []byte
	Final  func() []byte
	Size   int64
}

// Options shapes a layout.
type Options struct {
	ShardSize int64             // bytes of data per file at most; one larger tensor gets its own file
	Metadata  map[string]string // written to every file; format is pt unless it says otherwise
	Weights   string            // file name of a single weight file; model.safetensors if empty
}

// DefaultShardSize is the limit that transformers has used since 4.0: 5 GB,
// decimal.
const DefaultShardSize = 5_000_000_000

// NewLayout places the tensors, in the order given, in as many files as the
// shard size asks for. A path that ends in .safetensors is one file, anything
// else a folder.
func NewLayout(path string, specs []tensor.Spec, sidecars []Sidecar, o Options) (*Layout, error) {
	l := &Layout{Path: path, IsFolder: !strings.HasSuffix(path, ".safetensors"), Sidecars: sidecars}
	if o.ShardSize <= 0 {
		o.ShardSize = DefaultShardSize
	}
	shards := [][]tensor.Spec{specs}
	if l.IsFolder {
		shards = split(specs, o.ShardSize)
	}
	metadata := withFormat(o.Metadata)
	for i, shard := range shards {
		name := o.Weights
		switch {
		case !l.IsFolder:
			name = filepath.Base(path)
		case len(shards) > 1:
			name = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		case name == "":
			name = weightsName
		}
		st, err := safetensors.NewLayout(shard, metadata)
		if err != nil {
			return nil, fmt.Errorf("laying out %s: %w", name, err)
		}
		l.Files = append(l.Files, File{Name: name, layout: safetensorsLayout{st}})
	}
	if len(shards) > 1 {
		l.Sidecars = append(l.Sidecars, Sidecar{Name: indexName, Data: l.index()})
	}
	for i := range l.Sidecars {
		if s := &l.Sidecars[i]; s.Source == "" {
			s.Size = int64(len(s.Data))
		}
	}
	return l, l.checkUnique()
}

// checkUnique refuses a tensor that is in two files and two files of one name;
// within a file the format's own layout has looked already.
func (l *Layout) checkUnique() error {
	files, tensors := make(map[string]bool), make(map[string]bool)
	for _, f := range l.Files {
		files[f.Name] = true
		for _, t := range f.Tensors() {
			if tensors[t.Name] {
				return fmt.Errorf("laying out %s: tensor %q is declared twice", f.Name, t.Name)
			}
			tensors[t.Name] = true
		}
	}
	for _, s := range l.Sidecars {
		if files[s.Name] {
			return fmt.Errorf("laying out %s: the file is declared twice", s.Name)
		}
		files[s.Name] = true
	}
	return nil
}

// withFormat adds the entry that loaders look for.
func withFormat(metadata map[string]string) map[string]string {
	all := map[string]string{"format": "pt"}
	maps.Copy(all, metadata)
	return all
}

// split fills files greedily, in order.
func split(specs []tensor.Spec, limit int64) [][]tensor.Spec {
	var shards [][]tensor.Spec
	var current []tensor.Spec
	var size int64
	for _, s := range specs {
		if size+s.Size() > limit && len(current) > 0 {
			shards = append(shards, current)
			current, size = nil, 0
		}
		current = append(current, s)
		size += s.Size()
	}
	return append(shards, current)
}

// index encodes the index of a sharded layout.
func (l *Layout) index() []byte {
	var names []string
	var total int64
	fileOf := make(map[string]string)
	for _, f := range l.Files {
		for _, s := range f.Tensors() {
			names = append(names, s.Name)
			fileOf[s.Name] = f.Name
			total += s.Size()
		}
	}
	sort.Strings(names)
	return hfrepo.EncodeIndex(total, names, fileOf)
}

// Size returns the bytes of all files together.
func (l *Layout) Size() int64 {
	var n int64
	for i := range l.Files {
		n += l.Files[i].Size()
	}
	for _, s := range l.Sidecars {
		n += s.Size
	}
	return n
}

// FilePath returns the path of one of the layout's files.
func (l *Layout) FilePath(name string) string {
	if !l.IsFolder {
		return l.Path
	}
	return filepath.Join(l.Path, name)
}
