package convert

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
)

// fileTypes are the numbers of general.file_type.
var fileTypes = map[tensor.DType]uint32{tensor.F32: 0, tensor.F16: 1, tensor.BF16: 32}

// quantizationVersion is that of ggml's types.
const quantizationVersion = 2

// addKeys writes all keys, those of the architecture by the table of its family.
func (g *ggufPlanner) addKeys() error {
	if err := g.checkFixed(); err != nil {
		return err
	}
	g.text("general.architecture", g.family.Name)
	g.text("general.type", "model")
	if err := g.aboutKeys(); err != nil {
		return err
	}
	for i, p := range g.family.Params {
		last := !slices.ContainsFunc(g.family.Params[i+1:], func(later arch.Param) bool { return later.Key == p.Key })
		if err := g.addParam(p, last); err != nil {
			return err
		}
	}
	set(g, "general.quantization_version", uint32(quantizationVersion))
	g.vocabularyKeys()
	return nil
}

// addParam writes one row of the table. A later row of the same key may have a value
// where this one has none.
func (g *ggufPlanner) addParam(p arch.Param, last bool) error {
	if p.Rule != "" {
		if to := rules[p.Rule].to; to != nil {
			return to(g)
		}
		return nil
	}
	v, ok, err := g.number(p)
	switch {
	case err != nil:
		return err
	case !ok && last && p.Need.HF():
		return g.errorf("its config.json has no %s: no runtime loads a GGUF file of %s without %s", strings.Join(p.Names, ", nor "), g.family.Name, p.Key)
	case !ok, v == 0 && p.ZeroIsNone:
	case p.Kind == arch.Real:
		param(g, p.Key, float32(v))
	default:
		param(g, p.Key, uint32(v))
	}
	return nil
}

// number returns what config.json has for a row, or its default. Numbers of 32 bits are
// exact in it.
func (g *ggufPlanner) number(p arch.Param) (float64, bool, error) {
	var v float64
	var ok bool
	var err error
	if p.Kind == arch.Real {
		v, ok, err = g.optFloat(p.Names...)
	} else {
		var n int64
		n, ok, err = g.optInt(p.Names...)
		v = float64(n)
	}
	if err == nil && !ok && p.Default != 0 {
		return p.Default, true, nil
	}
	return v, ok, err
}

// sizeOf returns a whole number that the table has a row for; 0 if config.json has none.
func (g *ggufPlanner) sizeOf(key string) (int64, error) {
	p, ok := g.family.Param(key)
	if !ok {
		return 0, nil
	}
	v, _, err := g.number(p)
	return int64(v), err
}

// checkFixed refuses a model that is computed in another way than every GGUF file of its
// family: no key says so.
func (g *ggufPlanner) checkFixed() error {
	for _, f := range g.family.Fixed {
		var seen, want string
		var ok bool
		var err error
		if len(f.Texts) > 0 {
			seen, ok, err = g.hparams.OptString(f.Name)
			ok, want = ok && !slices.Contains(f.Texts, seen), strings.Join(f.Texts, ", ")
			seen = strconv.Quote(seen)
		} else {
			var on bool
			on, ok, err = g.hparams.OptBool(f.Name)
			ok, seen, want = ok && on != f.Flag, strconv.FormatBool(on), strconv.FormatBool(f.Flag)
		}
		if err != nil {
			return g.errorf("its config.json: %w", err)
		}
		if ok {
			return g.errorf("its config.json: %s is %s; a GGUF file of %s stands for %s", f.Name, seen, g.family.Name, want)
		}
	}
	return nil
}

// set puts a key at the end, or gives it another value where it stands.
func set[T gguf.Scalar](g *ggufPlanner, key string, v T) {
	if !g.keys.Replace(key, gguf.ValueOf(v)) {
		g.keys.Set(key, gguf.ValueOf(v))
	}
}

// text sets a key to a text; the converter leaves out empty ones.
func (g *ggufPlanner) text(key, text string) {
	if text != "" {
		set(g, key, text)
	}
}

// param sets a key of the architecture.
func param[T gguf.Scalar](g *ggufPlanner, key string, v T) { set(g, g.family.Name+"."+key, v) }

// find returns the first of some settings that config.json has; false if it is null.
func (g *ggufPlanner) find(names ...string) (name string, v strictjson.Value, ok bool) {
	for _, name := range names {
		if v, ok := g.hparams.Get(name); ok {
			return name, v, !v.IsNull()
		}
	}
	return "", strictjson.Value{}, false
}

// mustInt returns the first of some settings, which must be there.
func (g *ggufPlanner) mustInt(names ...string) (int64, error) {
	n, ok, err := g.optInt(names...)
	if err == nil && !ok {
		err = g.errorf("its config.json has no %s", strings.Join(names, ", nor "))
	}
	return n, err
}

func (g *ggufPlanner) intOr(otherwise int64, names ...string) (int64, error) {
	n, ok, err := g.optInt(names...)
	if !ok {
		n = otherwise
	}
	return n, err
}

// optInt returns the first of some settings if it is there. It has to fit 32 bits, as
// in the file.
func (g *ggufPlanner) optInt(names ...string) (int64, bool, error) {
	name, v, ok := g.find(names...)
	if !ok {
		return 0, false, nil
	}
	n, err := v.Int()
	if err != nil {
		return 0, false, g.errorf("its config.json: %s: %w", name, err)
	}
	if n < 0 || n > math.MaxUint32 {
		return 0, false, g.errorf("its config.json: %s is %d", name, n)
	}
	return n, true, nil
}

func (g *ggufPlanner) optFloat(names ...string) (float64, bool, error) {
	name, v, ok := g.find(names...)
	if !ok {
		return 0, false, nil
	}
	f, err := v.Float()
	if err != nil {
		return 0, false, g.errorf("its config.json: %s: %w", name, err)
	}
	return f, true, nil
}

// sizes counts the parameters, and says it in words: of a model of experts, how many one
// of them would have, and how many there are.
func (g *ggufPlanner) sizes() (total int64, label string) {
	var shared, expert, stacks, experts int64
	for _, s := range g.out {
		n, _ := s.Shape.NumElements()
		total += n
		if strings.Contains(s.Name, "_exps.") && len(s.Shape) >= 3 && s.Shape[0] > 0 {
			expert += n / s.Shape[0]
			experts += s.Shape[0]
			stacks++
			continue
		}
		shared += n
	}
	switch {
	case total == 0: // an adapter has no size of its own
		return 0, ""
	case stacks > 0:
		return total, fmt.Sprintf("%dx%s", experts/stacks, sizeLabel(shared+expert))
	}
	return total, sizeLabel(total)
}

// sizeLabel is a number of parameters in words: two digits, in thousands and up.
func sizeLabel(n int64) string {
	for _, unit := range []struct {
		scale, above float64
		suffix       string
	}{{1e-12, 1e12, "T"}, {1e-9, 1e9, "B"}, {1e-6, 1e6, "M"}, {1e-3, -1, "K"}} {
		if float64(n) <= unit.above {
			continue
		}
		scaled := float64(n) * unit.scale
		digits := len(strings.TrimLeft(fmt.Sprintf("%.0f", math.RoundToEven(scaled)), "0"))
		return fmt.Sprintf("%.*f%s", max(2-digits, 0), scaled, unit.suffix)
	}
	return ""
}
