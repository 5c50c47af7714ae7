// Package hfrepo knows the Hugging Face layout of a model: the index of a
// sharded checkpoint, config.json, the files beside the weights, and the local
// hub cache.
//
// The main types are [Index], [Config] and [Cache]. It reads no weights and
// never touches the network. Names that come from an index are plain file
// names or refused; nothing from an input is joined to a path unchecked.
package hfrepo

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/loratool/loratool/internal/strictjson"
)

// MaxIndexSize bounds model.safetensors.index.json: a model of a million
// tensors with long names stays below it.
const MaxIndexSize = 256 << 20

// Index is a model.safetensors.index.json.
type Index struct {
	TotalSize int64 // as stated, -1 if absent; not trusted
	tensors   []string
	shards    []string
	fileOf    map[string]string
}

// ParseIndex reads an index. Every file name must be one local path element
// ending in ".safetensors".
func ParseIndex(data []byte) (*Index, error) {
	root, err := strictjson.ParseObject(data)
	if err != nil {
		return nil, err
	}
	weights, err := root.Object("weight_map")
	if err != nil {
		return nil, err
	}
	x := &Index{TotalSize: -1, fileOf: make(map[string]string, weights.Len())}
	if md, ok, err := root.OptObject("metadata"); err == nil && ok {
		// Some tools write the size as a float; nothing depends on it.
		if size, ok, err := md.OptInt("total_size"); err == nil && ok {
			x.TotalSize = size
		}
	}
	seen := make(map[string]bool)
	for name, v := range weights.All() {
		shard, err := v.Text()
		if err != nil {
			return nil, fmt.Errorf("weight_map of tensor %q: %w", name, err)
		}
		if err := checkShardName(shard); err != nil {
			return nil, fmt.Errorf("weight_map of tensor %q: %w", name, err)
		}
		x.tensors = append(x.tensors, name)
		x.fileOf[name] = shard
		if !seen[shard] {
			seen[shard] = true
			x.shards = append(x.shards, shard)
		}
	}
	if len(x.tensors) == 0 {
		return nil, fmt.Errorf("weight_map is empty")
	}
	slices.Sort(x.shards)
	return x, nil
}

// checkShardName allows one plain file name of the folder, nothing that could
// lead elsewhere on any system.
func checkShardName(name string) error {
	switch {
	case name == "" || name == "." || strings.ContainsAny(name, `/\:`) || strings.ContainsFunc(name, unicode.IsControl) || !filepath.IsLocal(name):
		return fmt.Errorf("%q is not a plain file name", name)
	case strings.HasSuffix(name, ".bin"):
		return fmt.Errorf("%q is a PyTorch pickle file in a safetensors index", name)
	case !strings.HasSuffix(name, ".safetensors"):
		return fmt.Errorf("%q is not a .safetensors file", name)
	}
	return nil
}

// Tensors returns the tensor names in the order of the file.
func (x *Index) Tensors() []string { return x.tensors }

// Shards returns the file names, sorted.
func (x *Index) Shards() []string { return x.shards }

// File returns the file that holds a tensor.
func (x *Index) File(tensor string) (string, bool) {
	f, ok := x.fileOf[tensor]
	return f, ok
}

// EncodeIndex writes an index in the form transformers gives it: the total
// size, then the tensors sorted by name.
func EncodeIndex(totalSize int64, names []string, fileOf map[string]string) []byte {
	md := strictjson.NewObject()
	md.Set("total_size", strictjson.NewInt(totalSize))
	weights := strictjson.NewObject()
	for _, name := range names {
		weights.Set(name, strictjson.NewString(fileOf[name]))
	}
	root := strictjson.NewObject()
	root.Set("metadata", md.Value())
	root.Set("weight_map", weights.Value())
	return append(root.Encode("  "), '\n')
}
