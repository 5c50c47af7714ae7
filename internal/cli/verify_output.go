package cli

import (
	"fmt"
	"io"
	"math"
	"os"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/verify"
)

// outputFlags are the flags of an end-to-end check.
type outputFlags struct {
	set             *pflag.FlagSet
	on              bool
	tokens          string
	prompts         verify.Prompts
	allowed         verify.Allowed
	sequences, each count
}

func (f *outputFlags) register(fs *pflag.FlagSet) {
	f.set = fs
	fs.BoolVar(&f.on, "end-to-end", false, "also run the models on token ids and compare their logits")
	fs.StringVar(&f.tokens, "tokens", "", "`FILE` with the ids: a JSON list, or a list of lists")
	fs.Var(&f.sequences, "prompts", "sequences of ids to draw without --tokens (default 4)")
	fs.Var(&f.each, "length", "ids of a sequence (default 32)")
	fs.Uint64Var(&f.prompts.Seed, "seed", 0, "`NUMBER` that ids, and probes of --function, are drawn with")
	fs.Float64Var(&f.allowed.KL, "max-kl", 0, "mean divergence in `NATS` that a quantized model may have from its base")
	fs.Float64Var(&f.allowed.Top1, "min-top1", 0, "`SHARE` of positions at which a quantized model must have the first token of its base, such as 0.95")
}

// check looks at the flags and reads the tokens.
func (f *outputFlags) check(v *verifyFlags) error {
	for name, limit := range map[string]*float64{"max-kl": &f.allowed.KL, "min-top1": &f.allowed.Top1} {
		switch {
		case !f.set.Changed(name):
			*limit = math.NaN()
		case v.quantized == "":
			return usagef("--%s is for --quantized: what a merge may be off follows from its types", name)
		case !(*limit >= 0) || name == "min-top1" && *limit > 1:
			return usagef("--%s: %v is no limit", name, *limit)
		}
	}
	for _, name := range []string{"tokens", "prompts", "length", "seed", "max-kl", "min-top1"} {
		if f.set.Changed(name) && !f.on && !(name == "seed" && v.function.on) {
			return usagef("--%s is for --end-to-end", name)
		}
		if f.set.Changed(name) && f.tokens != "" && (name == "prompts" || name == "length" || name == "seed") {
			return usagef("--tokens and --%s exclude each other", name)
		}
	}
	if f.on && v.merged == "" && v.quantized == "" {
		return usagef("--end-to-end compares with a base: give --merged or --quantized")
	}
	f.prompts.Count, f.prompts.Length = 4, 32
	if f.sequences != 0 {
		f.prompts.Count = int(f.sequences)
	}
	if f.each != 0 {
		f.prompts.Length = int(f.each)
	}
	if f.tokens == "" {
		return nil
	}
	ids, err := readTokens(f.tokens)
	if err != nil {
		return usagef("--tokens: %w", err)
	}
	f.prompts.Tokens = ids
	return nil
}

// readTokens reads a list of ids, or of lists of them.
func readTokens(path string) ([][]int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	v, err := strictjson.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if ids, err := v.Ints(); err == nil && len(ids) > 0 {
		return [][]int64{ids}, nil
	}
	items, err := v.Items()
	if err != nil || len(items) == 0 {
		return nil, fmt.Errorf("%s: no list of token ids", path)
	}
	var all [][]int64
	for _, item := range items {
		ids, err := item.Ints()
		if err != nil || len(ids) == 0 {
			return nil, fmt.Errorf("%s: sequence %d is no list of token ids", path, len(all))
		}
		all = append(all, ids)
	}
	return all, nil
}

type (
	logitsOfJSON struct {
		Sequences int         `json:"sequences"`
		Positions int         `json:"positions"`
		Each      []number    `json:"kl"`                 // of each position, of the model
		Model     logitsJSON  `json:"model"`              // against the reference
		Effect    *logitsJSON `json:"base,omitempty"`     // the base alone
		Rounding  *logitsJSON `json:"rounding,omitempty"` // the reference with weights rounded once
		Scale     *number     `json:"scale,omitempty"`
		Limit     *number     `json:"limit,omitempty"`
	}
	logitsJSON struct {
		Mean     number `json:"kl_mean"`
		Max      number `json:"kl_max"`
		Top1     number `json:"top1_agreement"`
		Logit    number `json:"largest_difference"`
		Distance number `json:"distance"`
	}
)

func describeOutput(f *verify.OutputFigures) *logitsOfJSON {
	if f == nil {
		return nil
	}
	doc := &logitsOfJSON{Sequences: f.Sequences, Positions: f.Positions, Each: []number{}, Model: describeLogits(f.Model)}
	for _, kl := range f.Model.Each {
		doc.Each = append(doc.Each, number(kl))
	}
	if f.Effect != nil && f.Rounding != nil {
		effect, rounding := describeLogits(*f.Effect), describeLogits(*f.Rounding)
		doc.Effect, doc.Rounding, doc.Scale, doc.Limit = &effect, &rounding, (*number)(&f.Scale), (*number)(&f.Limit)
	}
	return doc
}

func describeLogits(f verify.LogitFigures) logitsJSON {
	return logitsJSON{number(f.Mean), number(f.Max), number(f.Top1), number(f.Logit), number(f.Distance)}
}

func (o *logitsOfJSON) print(w io.Writer) {
	if o == nil {
		return
	}
	line := func(what string, l logitsJSON) {
		fmt.Fprintf(w, "%s: KL %.3g nats, at most %.3g; the same first token at %s of %d positions; logits differ by %.3g at most\n",
			what, l.Mean, l.Max, percent(l.Top1), o.Positions, l.Logit)
	}
	line("end to end", o.Model)
	if o.Effect != nil {
		line("  rounded once", *o.Rounding)
		line("  base alone", *o.Effect)
	}
}
