package merge

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/checkpoint"
)

// replicate writes the layers that layer_replication makes of the base's: new
// layer i is a copy of layer from[i], and the adapter's names count the new
// ones. In training the copies share their tensors; in a file each is its own.
func (p *planner) replicate() error {
	var ranges [][2]int64
	for i, s := range p.sources {
		r := s.Adapter.Config.LayerReplication
		if i > 0 && !slices.Equal(r, ranges) {
			return &checkpoint.InputError{Path: s.Adapter.Source.Path, Err: fmt.Errorf(
				"its layer_replication differs from that of %s: they do not belong to one model", p.sources[0].Adapter.Source.Name)}
		}
		ranges = r
	}
	if len(ranges) == 0 {
		return nil
	}
	prefix, count := p.layerPrefix()
	if stated, ok := p.config.Layers(); ok {
		// The file may hold more layers than the model has.
		count = min(count, stated)
	}
	var from []int64
	for _, r := range ranges {
		if r[1] > count {
			return &checkpoint.InputError{Path: p.sources[0].Adapter.Source.Path, Err: fmt.Errorf(
				"layer_replication takes layers up to %d of a base that has %d", r[1], count)}
		}
		for l := r[0]; l < r[1]; l++ {
			from = append(from, l)
		}
	}
	old, order := p.entries, p.order
	p.entries, p.order = make(map[string]*entry), nil
	for _, name := range order {
		layer, rest, ok := cutLayer(name, prefix)
		if !ok {
			p.add(old[name])
			continue
		}
		for i, l := range from {
			if l != layer {
				continue
			}
			e := *old[name]
			e.name = prefix + strconv.Itoa(i) + rest
			e.spec.Name = e.name
			p.add(&e)
		}
	}
	p.config.RepeatLayers(from)
	p.decide("layers-replicated", fmt.Sprintf("layer_replication makes %d layers of %d: each is written out", len(from), count))
	return nil
}

// layerPrefix finds the path before the layer number of the model's main stack,
// the one with most tensors, and how many layers it has.
func (p *planner) layerPrefix() (prefix string, count int64) {
	tensors := make(map[string]int)
	layers := make(map[string]int64)
	for _, name := range p.order {
		parts := strings.Split(name, ".")
		for i, part := range parts {
			n, err := strconv.ParseInt(part, 10, 64)
			if err != nil || i == 0 {
				continue
			}
			pre := strings.Join(parts[:i], ".") + "."
			tensors[pre]++
			layers[pre] = max(layers[pre], n+1)
			if tensors[pre] > tensors[prefix] || tensors[pre] == tensors[prefix] && pre < prefix {
				prefix = pre
			}
			break // the first number counts the layers
		}
	}
	return prefix, layers[prefix]
}

// cutLayer takes "model.layers.7.mlp.weight" apart into 7 and ".mlp.weight".
func cutLayer(name, prefix string) (layer int64, rest string, ok bool) {
	tail, ok := strings.CutPrefix(name, prefix)
	if !ok || prefix == "" {
		return 0, "", false
	}
	number, _, _ := strings.Cut(tail, ".")
	layer, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, "", false
	}
	return layer, tail[len(number):], true
}
