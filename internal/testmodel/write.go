package testmodel

import (
	"encoding/json"
	"fmt"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
)

// Options say what a written model holds. The zero value is a model of seed 0
// in shards of the usual size.
type Options struct {
	Seed      uint64
	ShardSize int64 // bytes per file; 0 is checkpoint.DefaultShardSize
	// Sparse leaves all weights zero. They are holes of the files then: a model
	// of any size takes no room on a disk that knows holes.
	Sparse bool
}

// Write makes a model folder.
func (m Llama) Write(dir string, o Options) error {
	config, err := m.config()
	if err != nil {
		return err
	}
	layout, err := checkpoint.NewLayout(dir, m.Specs(), []checkpoint.Sidecar{{Name: "config.json", Data: config}},
		checkpoint.Options{ShardSize: o.ShardSize})
	if err != nil {
		return err
	}
	if o.Sparse {
		return write(layout, zeros{})
	}
	return write(layout, newNoise(o.Seed))
}

// source makes the bytes of tensors.
type source interface {
	// start returns a function that fills buffers with the bytes of a tensor,
	// one after another. All but the last have the length of a chunk.
	start(spec tensor.Spec) (func(p []byte), error)
}

// zeros is the source of a sparse model: buffers stay as they are made.
type zeros struct{}

func (zeros) start(tensor.Spec) (func(p []byte), error) { return func([]byte) {}, nil }

// chunk is how many bytes are made at a time.
const chunk = 1 << 20

func write(layout *checkpoint.Layout, values source) error {
	sink, err := checkpoint.Create(fsatomic.OS{}, layout, false)
	if err != nil {
		return err
	}
	if err := fill(sink, layout, values); err != nil {
		if aerr := sink.Abort(); aerr != nil {
			return fmt.Errorf("%w (and removing the partial output: %v)", err, aerr)
		}
		return err
	}
	return sink.Commit(nil)
}

func fill(sink *checkpoint.Sink, layout *checkpoint.Layout, values source) error {
	buf := make([]byte, chunk)
	for _, file := range layout.Files {
		for _, t := range file.Tensors() {
			next, err := values.start(t.Spec)
			if err != nil {
				return err
			}
			for off := int64(0); off < t.Size(); off += chunk {
				p := buf[:min(chunk, t.Size()-off)]
				next(p)
				if err := sink.WriteAt(t.Name, p, off); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func encode(config map[string]any) ([]byte, error) {
	text, err := json.MarshalIndent(config, "", "  ")
	return append(text, '\n'), err
}
