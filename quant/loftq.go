package quant

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/loftq"
)

// LoftQ asks for an adapter that makes up for the quantization, W ~ Q + scale·B·A; see
// the package quant/loftq. Only Output and Rank must be given.
type LoftQ struct {
	Output     string // folder of the adapter
	Rank       int
	Iterations int // none is loftq.DefaultIterations
	Order      loftq.Order
	Alpha      float64 // lora_alpha; none is the rank
	RSLoRA     bool    // the adapter's scale is alpha / sqrt(rank), not alpha / rank
	// Bits are widths by layer, of types that are stored as plain numbers.
	Bits []LayerBits
	// Target, if not empty, names the only modules that get a pair; Exclude those that
	// get none. A name covers a module whole, or from a dot on; an asterisk stands for
	// any text.
	Target, Exclude []string
	Moments         Moments // of the activations; nil for none
	Exact           bool    // decompositions in float64
}

// LayerBits is a width of the weights of some layers, both ends included.
type LayerBits struct {
	From, To int64
	Bits     int
}

// toLast ends a range that has no end.
const toLast = math.MaxInt64

// ParseBits reads widths by layer: "0-15:4,16-:2,40:3".
func ParseBits(text string) ([]LayerBits, error) {
	refuse := func(part, reason string) error {
		return &OptionError{"bits", fmt.Sprintf("%q %s", part, reason)}
	}
	var all []LayerBits
	for _, part := range strings.Split(text, ",") {
		layers, width, ok := strings.Cut(part, ":")
		if !ok {
			return nil, refuse(part, "is not LAYERS:BITS, such as 0-15:4 or 16-:2")
		}
		from, to, isRange := strings.Cut(layers, "-")
		b := LayerBits{To: toLast}
		var err error
		if b.From, err = parseLayer(from); err != nil {
			return nil, refuse(part, "does not begin with the number of a layer")
		}
		if !isRange {
			b.To = b.From
		} else if to != "" {
			if b.To, err = parseLayer(to); err != nil || b.To < b.From {
				return nil, refuse(part, "ends with no layer behind its first")
			}
		}
		if b.Bits, err = strconv.Atoi(width); err != nil || b.Bits < 2 || b.Bits > 4 {
			return nil, refuse(part, "has no width of 2, 3 or 4 bits")
		}
		for _, other := range all {
			if b.From <= other.To && other.From <= b.To {
				return nil, refuse(part, "names layers that have a width already")
			}
		}
		all = append(all, b)
	}
	return all, nil
}

// parseLayer reads the number of a layer: digits alone.
func parseLayer(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err == nil && text != strconv.FormatUint(n, 10) {
		return 0, strconv.ErrSyntax
	}
	return int64(n), err
}

// formatBits is the inverse of ParseBits.
func formatBits(all []LayerBits) string {
	var parts []string
	for _, b := range all {
		layers := fmt.Sprintf("%d-%d", b.From, b.To)
		switch b.To {
		case b.From:
			layers = fmt.Sprint(b.From)
		case toLast:
			layers = fmt.Sprintf("%d-", b.From)
		}
		parts = append(parts, fmt.Sprintf("%s:%d", layers, b.Bits))
	}
	return strings.Join(parts, ",")
}

// alpha returns lora_alpha.
func (l *LoftQ) alpha() float64 {
	if l.Alpha == 0 {
		return float64(l.Rank)
	}
	return l.Alpha
}

// scale is what the adapter multiplies its products with.
func (l *LoftQ) scale() float64 {
	if l.RSLoRA {
		return l.alpha() / math.Sqrt(float64(l.Rank))
	}
	return l.alpha() / float64(l.Rank)
}

// describe lists the options that were given, for provenance.
func (l *LoftQ) describe() *strictjson.Object {
	all := strictjson.NewObject()
	all.Set("rank", strictjson.NewInt(int64(l.Rank)))
	all.Set("iterations", strictjson.NewInt(int64(l.iterations())))
	all.Set("order", strictjson.NewString(l.Order.String()))
	all.Set("scale", floatValue(l.scale()))
	if len(l.Bits) > 0 {
		all.Set("bits", strictjson.NewString(formatBits(l.Bits)))
	}
	if len(l.Target) > 0 {
		all.Set("target", strictjson.NewStrings(l.Target))
	}
	if len(l.Exclude) > 0 {
		all.Set("exclude", strictjson.NewStrings(l.Exclude))
	}
	if l.Moments != nil {
		all.Set("weighted", strictjson.NewBool(true))
	}
	if l.Exact {
		all.Set("exact", strictjson.NewBool(true))
	}
	return all
}

// floatValue is a number of JSON, an integer where it is one. It is finite.
func floatValue(x float64) strictjson.Value {
	if x == math.Trunc(x) && math.Abs(x) < 1<<53 {
		return strictjson.NewInt(int64(x))
	}
	v, _ := strictjson.NewFloat(x)
	return v
}

func (l *LoftQ) iterations() int {
	if l.Iterations == 0 {
		return loftq.DefaultIterations
	}
	return l.Iterations
}

// maxAlpha is far beyond any use.
const maxAlpha = 1e6

// checkLoftQ refuses what does not go together.
func (o *Options) checkLoftQ() error {
	l := o.LoftQ
	family, width := o.Type.dense()
	switch {
	case l.Output == "":
		return &OptionError{"adapter-out", "it is missing: where does the adapter go?"}
	case strings.HasSuffix(l.Output, ".safetensors"):
		return &OptionError{"adapter-out", fmt.Sprintf("an adapter is a folder, not the file %q", l.Output)}
	case strings.HasSuffix(o.Output, ".safetensors"):
		return &OptionError{"output", fmt.Sprintf("an adapter is trained on a folder, not on the file %q", o.Output)}
	case !(l.Alpha >= 0 && l.Alpha <= maxAlpha):
		return &OptionError{"alpha", fmt.Sprintf("%v is not between 0 and %g", l.Alpha, float64(maxAlpha))}
	case len(l.Bits) > 0 && width == 0:
		return &OptionError{"bits", fmt.Sprintf("widths by layer are for the nf and uniform types, not for %s", o.Type)}
	case o.plainNumbers() && (o.DoubleQuant || o.Storage != 0 || o.ComputeDType != 0):
		return &OptionError{"type", fmt.Sprintf("%s is stored as plain numbers: options of packed codes do not apply", o.Type)}
	case family == "uniform" && o.BlockSize != 0:
		return &OptionError{"blocksize", "uniform types have one scale for a whole weight"}
	}
	rest := loftq.Options{Rank: l.Rank, Iterations: l.Iterations, Order: l.Order, Scale: l.scale()}
	return asOption(rest.Validate(1))
}

// asOption makes an option of this package of one of the solver's.
func asOption(err error) error {
	if e, ok := err.(*loftq.OptionError); ok {
		name := e.Option
		if name == "iterations" {
			name = "iters"
		}
		return &OptionError{name, e.Reason}
	}
	return err
}

// pairing is a weight that gets a pair.
type pairing struct {
	target  *target
	index   int
	name    string // of the module in memory
	rank    int64
	moments []float64
}

// choosePairs decides which weights get pairs, and which width each has.
func (p *planner) choosePairs() error {
	l := p.options.LoftQ
	if err := p.chooseBits(); err != nil {
		return err
	}
	for _, list := range []struct {
		option string
		names  []string
	}{{"target", l.Target}, {"exclude", l.Exclude}} {
		for _, name := range list.names {
			if !slices.ContainsFunc(p.targets, func(t *target) bool { return coversModule(name, t.module) }) {
				return &OptionError{list.option, fmt.Sprintf("%q names no module that is quantized", name)}
			}
		}
	}
	prefix := p.findPrefix()
	var alone []string
	for _, t := range p.targets {
		named := func(name string) bool { return coversModule(name, t.module) }
		if len(l.Target) > 0 && !slices.ContainsFunc(l.Target, named) || slices.ContainsFunc(l.Exclude, named) {
			alone = append(alone, t.module)
			continue
		}
		t.pair = &pairing{target: t, index: len(p.pairs), name: prefix + t.module, rank: int64(l.Rank)}
		p.pairs = append(p.pairs, t.pair)
		if l.Moments == nil {
			continue
		}
		var err error
		if t.pair.moments, err = l.Moments.Of(t.module, t.shape[1]); err != nil {
			return err
		}
	}
	if len(p.pairs) == 0 {
		return &OptionError{"exclude", "no module is left that could get a pair"}
	}
	if len(alone) > 0 {
		p.decide("without-pair", "quantized without a pair: --target and --exclude leave them out", alone...)
	}
	if l.Moments != nil {
		p.plan.Inputs = append(p.plan.Inputs, l.Moments.Input())
	}
	return nil
}

// chooseBits gives every weight that is stored as plain numbers its width.
func (p *planner) chooseBits() error {
	o := p.options
	if !o.plainNumbers() {
		return nil
	}
	used := make([]bool, len(o.LoftQ.Bits))
	var rest []string
	for _, t := range p.targets {
		_, t.bits = o.Type.dense()
		found := false
		if layer, ok := layerOf(t.module); ok {
			for i, b := range o.LoftQ.Bits {
				if b.From <= layer && layer <= b.To {
					t.bits, used[i], found = b.Bits, true, true
				}
			}
		}
		if !found && len(used) > 0 {
			rest = append(rest, t.module)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return &OptionError{"bits", fmt.Sprintf("%q names no layer with weights that are quantized", formatBits(o.LoftQ.Bits[i:i+1]))}
	}
	if len(rest) > 0 {
		p.decide("bits-default", fmt.Sprintf("--bits does not name their layer: they have the width of %s", o.Type), rest...)
	}
	return nil
}

// layerOf is the first number in the name of a module.
func layerOf(module string) (int64, bool) {
	for _, part := range strings.Split(module, ".") {
		if n, err := parseLayer(part); err == nil {
			return n, true
		}
	}
	return 0, false
}

// coversModule reports whether a name that a user gave covers a module, whole or from a
// dot on.
func coversModule(name, module string) bool { return adapter.MatchGlob("*."+name, "."+module) }

// findPrefix finds what the names of the files lack: in memory, where an adapter is
// loaded, they have it.
func (p *planner) findPrefix() string {
	prefix := arch.BodyPrefix(p.config.ModelType())
	lacks := func(t *target) bool { return !strings.HasPrefix(t.module, prefix) }
	if prefix == "" || !arch.HasHead(p.config.Architecture()) || !slices.ContainsFunc(p.targets, lacks) {
		return ""
	}
	p.decide("prefix", fmt.Sprintf("the files leave out %q, which the names of %s have when it is loaded: the adapter's have it", prefix, p.config.Architecture()))
	return prefix
}

// Repair is a quantization with an adapter that makes up for it. The two belong
// together: the weights are not those of a plain quantization.
type Repair struct {
	*Quantization
	AdapterPlan   *plan.Plan
	AdapterLayout *checkpoint.Layout
	Adapter       checkpoint.Checkpoint // the only input of AdapterPlan
	pairs         []*pairing
	planner       *planner
	config        *strictjson.Object
	store         *Store
	final         map[string]string // hashes once known, by path
}

// Output is one of the two outputs of a quantization with pairs: its bytes come from the
// source, which is the only input of the plan.
type Output struct {
	Plan   *plan.Plan
	Layout *checkpoint.Layout
	Source checkpoint.Checkpoint
}

// Outputs returns the two outputs. The layout of the adapter changes with [Repair.Use].
func (r *Repair) Outputs() (quantized, adapter Output) {
	return Output{r.Plan, r.Layout, r.View}, Output{r.AdapterPlan, r.AdapterLayout, r.Adapter}
}

// Memory bounds what reading the view takes in jobs goroutines.
func (r *Repair) Memory(jobs int) int64 { return r.View.Memory(jobs) }

// PlanLoftQ decides how to quantize a model and which weights get a pair, and where
// every byte of both outputs goes. What [Repair.Tasks] find is needed to run the two
// plans; see [Repair.Use].
func PlanLoftQ(base *checkpoint.Model, o Options) (*Repair, error) {
	if o.LoftQ == nil {
		return nil, &OptionError{"loftq", "there are no options of it"}
	}
	p, err := newPlanner(base, o)
	if err != nil {
		return nil, err
	}
	r := &Repair{planner: p, pairs: p.pairs}
	if r.Quantization, err = p.finish(); err != nil {
		return nil, err
	}
	return r, r.planAdapter()
}

// BaseName is what the adapter's config calls the quantized model: the name of its
// folder.
func (r *Repair) BaseName() string { return filepath.Base(r.opts.Output) }

// checkConfig reads the config as a loader would: it covers the modules with pairs,
// with the rank and scale that the factors are for, and no others.
func (r *Repair) checkConfig() error {
	c, err := adapter.ParseConfig(r.config)
	if err != nil {
		return fmt.Errorf("adapter_config.json: %w", err)
	}
	paired := make(map[string]bool)
	for _, p := range r.pairs {
		paired[p.name] = true
		if c.RankOf(p.name) != p.rank || c.ScaleOf(p.name) != r.opts.LoftQ.scale() {
			return fmt.Errorf("adapter_config.json: it gives %q another rank or scale", p.name)
		}
	}
	for module := range r.modules() {
		if c.Covers(module) != paired[module] {
			return fmt.Errorf("adapter_config.json: target_modules can't tell %q from other modules of the model", module)
		}
	}
	return nil
}
