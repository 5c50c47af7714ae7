package verify

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
)

// checkShapes compares names and shapes with what the config asks for, in families
// that arch has a table of.
func checkShapes(_ context.Context, s *subject) error {
	decoder, name, ok := s.decoder()
	switch {
	case name == "":
		return nil // no config, or none that names a family
	case !ok:
		s.add("family-unknown", "", "no table of the family %q: shapes and layers are not compared with the config", name)
		return nil
	}
	c := newShapeCheck(s, decoder)
	c.checkTensors()
	c.checkLayers()
	c.checkModel()
	return nil
}

// decoder returns the table of the model's family, and the family's name.
func (s *subject) decoder() (d arch.Decoder, name string, ok bool) {
	if summary, isGGUF := s.model.GGUFSummary(); isGGUF {
		if summary.Kind != "model" {
			return d, "", false
		}
		d, ok = arch.GGUFDecoder(summary.Architecture)
		return d, summary.Architecture, ok
	}
	if !s.isModel() {
		return d, "", false
	}
	name = s.config.ModelType()
	d, ok = arch.DecoderOf(name)
	return d, name, ok
}

// setting reads a number of the config, or of the keys of a GGUF file. One that is
// there and no number is 0.
func (s *subject) setting(key string) (v int64, stated bool) {
	set := s.model.GGUF()
	if set == nil {
		return s.config.Int(key)
	}
	if strings.HasSuffix(key, ".vocab_size") { // most files have no key but the list of tokens
		if tokens, ok := set.Metadata().Get("tokenizer.ggml.tokens"); ok {
			return int64(tokens.Len()), true
		}
	}
	value, ok := set.Metadata().Get(key)
	if !ok {
		return 0, false
	}
	v, err := value.Int()
	if err != nil {
		return 0, true
	}
	return v, true
}

// shapeCheck is one comparison of a model with its table.
type shapeCheck struct {
	*subject
	decoder arch.Decoder
	sizes   arch.Sizes
	root    string // what names begin with: the table's, or nothing
	layers  int64  // of the config, -1 if it does not say
	seen    map[int64]map[string]bool
	present map[string]bool // tensors of the model, by the name in the table
}

func newShapeCheck(s *subject, d arch.Decoder) *shapeCheck {
	c := &shapeCheck{subject: s, decoder: d, sizes: d.Keys.Resolve(s.setting), layers: -1,
		seen: make(map[int64]map[string]bool), present: make(map[string]bool)}
	if n, ok := s.setting(d.Keys.Layers); ok && n > 0 {
		c.layers = n
	}
	for _, spec := range s.model.Specs() {
		if strings.HasPrefix(spec.Name, d.Root) {
			c.root = d.Root
		}
	}
	return c
}

// checkTensors compares every tensor that the table knows.
func (c *shapeCheck) checkTensors() {
	layer, model := index(c.decoder.Layer), index(c.decoder.Model)
	for _, spec := range c.model.Specs() {
		name := spec.Name
		if c.root == "" {
			name = c.decoder.Root + name
		}
		if t, ok := model[name]; ok {
			c.present[name] = true
			c.compare(spec, t)
			continue
		}
		number, suffix, ok := c.layerOf(spec.Name)
		if !ok {
			continue
		}
		if c.seen[number] == nil {
			c.seen[number] = make(map[string]bool)
		}
		c.seen[number][suffix] = true
		if t, ok := layer[suffix]; ok {
			c.compare(spec, t)
		}
	}
}

func index(tensors []arch.DecoderTensor) map[string]arch.DecoderTensor {
	m := make(map[string]arch.DecoderTensor)
	for _, t := range tensors {
		m[t.Name] = t
	}
	return m
}

// layerOf cuts "model.layers.3.mlp.up_proj.weight" into 3 and what follows it.
func (c *shapeCheck) layerOf(name string) (number int64, suffix string, ok bool) {
	rest, ok := strings.CutPrefix(name, c.root+c.decoder.Layers)
	if !ok {
		return 0, "", false
	}
	digits, suffix, ok := strings.Cut(rest, ".")
	number, err := strconv.ParseInt(digits, 10, 32)
	return number, suffix, ok && err == nil && number >= 0
}

func (c *shapeCheck) compare(spec tensor.Spec, t arch.DecoderTensor) {
	want, ok := c.sizes.Shape(t)
	if ok && !spec.Shape.Equal(want) {
		c.add("shape-config", spec.Name, "its shape is %s, the config asks for %s", spec.Shape, tensor.Shape(want))
	}
}

// maxNamed is how many missing tensors are named one by one.
const maxNamed = 20

// checkLayers looks for layers beyond the config's and for tensors that a layer
// lacks.
func (c *shapeCheck) checkLayers() {
	if c.layers < 0 || len(c.seen) == 0 {
		return
	}
	top := int64(-1)
	for number := range c.seen {
		top = max(top, number)
	}
	if top >= c.layers {
		c.add("layer-count", "", "there is a layer %d, the config has %d layers", top, c.layers).measured(float64(top+1), float64(c.layers))
	}
	missing := 0
	for number := range min(c.layers, top+1) {
		for _, t := range c.decoder.Layer {
			if t.Optional || c.seen[number][t.Name] {
				continue
			}
			if missing++; missing <= maxNamed {
				c.missing(fmt.Sprintf("%s%s%d.%s", c.root, c.decoder.Layers, number, t.Name))
			}
		}
	}
	if missing > maxNamed {
		c.add("tensor-missing", "", "%d more tensors of layers are missing", missing-maxNamed)
	}
	if top+1 < c.layers {
		c.add("tensor-missing", "", "the layers from %d on are missing: the config has %d", top+1, c.layers)
	}
}

// checkModel looks for the tensors outside of layers.
func (c *shapeCheck) checkModel() {
	for _, t := range c.decoder.Model {
		if !t.Optional && !c.present[t.Name] {
			name := t.Name
			if c.root == "" {
				name = strings.TrimPrefix(name, c.decoder.Root)
			}
			c.missing(name)
		}
	}
}

func (c *shapeCheck) missing(name string) {
	c.add("tensor-missing", name, "the model needs it, and it is not there")
}
