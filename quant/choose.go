package quant

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// This file chooses the weights that are quantized: those of linear layers, as
// transformers chooses them (quantizers/quantizer_bnb_4bit.py and
// integrations/bitsandbytes.py of 5.23). It sees modules, we see names and shapes; so
// what is left alone is written to the config by name, and both agree.

// weightSuffix ends the name of what a layer multiplies with.
const weightSuffix = ".weight"

// target is a weight to quantize.
type target struct {
	spec       tensor.Spec // of the source
	module     string
	shape      tensor.Shape // as quantized: (out, in)
	dtype      tensor.DType // that the codes are decoded to
	transposed bool         // stored as (in, out)
	bytes      int64        // of all it becomes

	bits int // of what is stored as plain numbers; 0 of codes
	pair *pairing
}

// keptModule is a module with a matrix for a weight that is left alone.
type keptModule struct{ name, reason string }

// The reasons to leave a module alone.
const (
	isSkipped   = "skipped"
	isEmbedding = "embedding"
	isHead      = "head"
	isExpert    = "expert"
	isRouter    = "router"
	isAttention = "attention"
	isFP32      = "fp32"
	isInBase    = "in-base"
)

// reasons explain them, in the order in which they are printed.
var reasons = []struct{ reason, text string }{
	{isHead, "the head is kept as it is, as transformers keeps it"},
	{isEmbedding, "embeddings are kept as they are: they are tables, not linear layers"},
	{isExpert, "experts are kept as they are: in transformers 5 they are one stacked parameter, which bitsandbytes does not quantize"},
	{isRouter, "routers are kept as they are: a small error there changes which experts run"},
	{isAttention, "the output of nn.MultiheadAttention is kept as it is: bitsandbytes replaces plain linear layers only"},
	{isFP32, "kept as they are: transformers keeps these layers of the model type in 32 bits"},
	{isSkipped, "kept as they are, as asked for"},
	{isInBase, "kept as they are: the base does not quantize them"},
}

// embeddingNames are the last components of the names of embeddings that do not say
// "embed".
var embeddingNames = map[string]bool{
	"wte": true, "wpe": true, "shared": true, "tokens": true, "relative_attention_bias": true, "positional_embedding": true,
}

// headNames are the last components of the names of heads, of language models and
// classifiers.
var headNames = map[string]bool{"lm_head": true, "embed_out": true, "score": true, "classifier": true, "qa_outputs": true}

// routerNames are the last components of the names of what distributes tokens over
// experts.
var routerNames = map[string]bool{"gate": true, "router": true, "shared_expert_gate": true}

// inFP32 are modules that transformers keeps in 32 bits and so never quantizes
// (_keep_in_fp32_modules), by model type; those of norms and biases are left out.
var inFP32 = map[string][]string{
	"t5": {"wo"}, "mt5": {"wo"}, "umt5": {"wo"}, "pop2piano": {"wo"}, "udop": {"wo"},
	"blip-2": {"qformer"}, "blip_2_qformer": {"qformer"},
	"deepseek_v32": {"indexer.weights_proj"}, "glm_moe_dsa": {"indexer.weights_proj"}, "axk2": {"indexer.weights_proj"},
	"mistral_large4": {"indexer.weights_proj"}, "longcat_flash": {"classifier"},
	"deepseek_v4": {
		"compressor.kv_proj", "compressor.gate_proj", "indexer.kv_proj", "indexer.gate_proj", "scorer.weights_proj",
	},
}

// choose sorts the matrices of the model into targets and what is kept.
func (p *planner) choose() error {
	names := func(yield func(string) bool) {
		for _, s := range p.source.Specs() {
			if !yield(s.Name) {
				return
			}
		}
	}
	embedding, head, _ := arch.Embeddings(names, p.config.Architecture())
	inBase := p.inBase()
	for _, s := range p.source.Specs() {
		module, ok := strings.CutSuffix(s.Name, weightSuffix)
		if !ok || len(s.Shape) != 2 {
			continue
		}
		reason := p.keep(module, s.Name == embedding, s.Name == head)
		if reason == "" && inBase != nil && !inBase[s.Name] {
			reason = isInBase
		}
		if reason != "" {
			p.kept = append(p.kept, keptModule{module, reason})
			continue
		}
		if err := p.checkSource(s); err != nil {
			return err
		}
		t := &target{spec: s, module: module, shape: s.Shape, dtype: p.dtypeOf(s)}
		if arch.StoresConv1D(p.config.ModelType(), module) {
			t.transposed, t.shape = true, tensor.Shape{s.Shape[1], s.Shape[0]}
		}
		p.targets = append(p.targets, t)
	}
	for _, m := range p.skip {
		if !slices.ContainsFunc(p.kept, func(k keptModule) bool { return k.reason == isSkipped && m.matches(k.name) }) {
			return &OptionError{"skip", fmt.Sprintf("%q is neither the beginning nor the end of a module's name; '.*%s' matches inside", m.suffix, m.suffix)}
		}
	}
	if len(p.targets) == 0 {
		return p.errorf("no weight of a linear layer to quantize")
	}
	// A head that is tied and not stored is a linear layer all the same.
	if module, _ := strings.CutSuffix(head, weightSuffix); module != "" && arch.HasHead(p.config.Architecture()) {
		if !slices.ContainsFunc(p.kept, func(k keptModule) bool { return k.name == module }) {
			p.kept = append(p.kept, keptModule{module, isHead})
		}
	}
	return nil
}

// has reports whether there is a tensor.
func (p *planner) has(name string) bool {
	return slices.ContainsFunc(p.source.Specs(), func(s tensor.Spec) bool { return s.Name == name })
}

// keep says why a module is left alone; empty if it is not.
func (p *planner) keep(module string, embedding, head bool) string {
	last := module[strings.LastIndex(module, ".")+1:]
	switch {
	case slices.ContainsFunc(p.skip, func(m matcher) bool { return m.matches(module) }):
		return isSkipped
	case head || headNames[last]:
		return isHead
	case embedding || embeddingNames[last] || strings.Contains(last, "embed"):
		return isEmbedding
	case strings.Contains(module, ".experts."):
		return isExpert
	case routerNames[last] || strings.Contains(module, ".router."):
		return isRouter
	case last == "out_proj" && p.has(strings.TrimSuffix(module, "out_proj")+"in_proj_weight"):
		return isAttention
	}
	for _, name := range inFP32[p.config.ModelType()] {
		if module == name || strings.HasSuffix(module, "."+name) || strings.Contains("."+module, "."+name+".") {
			return isFP32
		}
	}
	return ""
}

// checkSource refuses what bitsandbytes can't quantize.
func (p *planner) checkSource(s tensor.Spec) error {
	if d, ok := p.base.Derived(s.Name); ok && !p.options.Requantize && p.options.From == nil {
		return p.errorf("tensor %q is quantized already, as %s: quantizing what is left of it loses once more", s.Name, d.Kind)
	}
	if block.TorchName(s.DType) == "" {
		return p.errorf("tensor %q is stored as %s: only f16, bf16 and f32 are quantized", s.Name, s.DType)
	}
	if s.NumElements() == 0 {
		return p.errorf("tensor %q is empty: its shape is %v", s.Name, s.Shape)
	}
	if size := p.options.Storage.Bits() / 8; p.options.Type != Int8 && !p.options.plainNumbers() && codeBytes(p.options.Type, s.NumElements())%size != 0 {
		return p.errorf("tensor %q: the codes of %v do not fill whole elements of %s", s.Name, s.Shape, p.options.Storage)
	}
	return nil
}

// explain records the choice.
func (p *planner) explain() {
	if len(p.quantized()) > 0 {
		p.decide("requantized", "the weights are quantized already: what they stand for is quantized once more, as asked for")
	}
	var targets, turned []string
	for _, t := range p.targets {
		targets = append(targets, t.module)
		if t.transposed {
			turned = append(turned, t.module)
		}
	}
	p.decide("quantized", "linear layers that are quantized to "+p.describe(), targets...)
	if len(turned) > 0 {
		p.decide("transposed", "the model type stores these as (in, out): they are quantized as (out, in), as transformers does", turned...)
	}
	for _, r := range reasons {
		var names []string
		for _, k := range p.kept {
			if k.reason == r.reason {
				names = append(names, k.name)
			}
		}
		if len(names) > 0 {
			p.decide("kept-"+r.reason, r.text, names...)
		}
	}
}

// describe names the format.
func (p *planner) describe() string {
	o := p.options
	switch {
	case o.Type == Int8:
		return "int8 by rows"
	case o.plainNumbers():
		return o.describeNumbers()
	}
	double := ""
	if o.DoubleQuant {
		double = ", with quantized scales"
	}
	return fmt.Sprintf("%s in blocks of %d%s, computing in %s", o.Type, o.BlockSize, double, o.ComputeDType)
}

// skipModules lists what is kept for llm_int8_skip_modules. A listed name counts for
// transformers as the beginning of a module's name, as a regular expression, or as its
// end (5.x), and as a name or one on the way (4.x). Names of memory can differ from
// those of files in what comes first, so that the last component is listed too,
// unless that would match a layer that is quantized.
func (p *planner) skipModules() []string {
	var all []string
	add := func(name string) {
		if !slices.Contains(all, name) && !p.matchesTarget(name) {
			all = append(all, name)
		}
	}
	for _, k := range p.kept {
		switch k.reason {
		case isExpert:
			add(`.*\.experts`)
			add(".experts")
		case isSkipped: // by the pattern
		default:
			add(k.name)
			add(k.name[strings.LastIndex(k.name, ".")+1:])
		}
	}
	slices.Sort(all) // whatever the order of the file
	for _, pattern := range p.options.Skip {
		if !slices.Contains(all, pattern) {
			all = append(all, pattern)
		}
	}
	return all
}

// matchesTarget reports whether a skip pattern would match a quantized layer.
func (p *planner) matchesTarget(pattern string) bool {
	m, err := compile([]string{pattern})
	return err != nil || slices.ContainsFunc(p.targets, func(t *target) bool {
		return m[0].matches(t.module) || strings.Contains(t.module, pattern+".")
	})
}

// matcher is a pattern of llm_int8_skip_modules.
type matcher struct {
	suffix string
	prefix *regexp.Regexp
}

// patternChars are what Python's regular expressions and Go's read alike.
var patternChars = regexp.MustCompile(`^[A-Za-z0-9_.*+?|()\[\]\\-]+$`)

// compile reads patterns. The names of modules are such patterns.
func compile(patterns []string) ([]matcher, error) {
	all := make([]matcher, len(patterns))
	for i, pattern := range patterns {
		if !patternChars.MatchString(pattern) || strings.Contains(pattern, "(?") {
			return nil, &OptionError{"skip", fmt.Sprintf("%q is not the name of a module or a plain regular expression", pattern)}
		}
		prefix, err := regexp.Compile(`^(?:` + pattern + `)(?:\.|$)`)
		if err != nil {
			return nil, &OptionError{"skip", fmt.Sprintf("%q: %v", pattern, err)}
		}
		all[i] = matcher{pattern, prefix}
	}
	return all, nil
}

// matches reports whether the pattern is the beginning of the name, up to a dot or
// the end, as a regular expression, or the end of it as it stands
// (quantizers_utils.py, should_convert_module).
func (m matcher) matches(module string) bool {
	return m.prefix.MatchString(module) || strings.HasSuffix(module, m.suffix)
}
