package verify

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/forward"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/block"
)

// Prompts are the token ids that models are run on: Tokens, or Count sequences of
// Length ids drawn from the vocabulary with a seed.
type Prompts struct {
	Tokens        [][]int64
	Count, Length int
	Seed          uint64
}

// LogitFigures compare the logits Q of a model with those of a reference P, over all
// positions.
type LogitFigures struct {
	Mean, Max float64   // of KL(P || Q), in nats
	Top1      float64   // share of the positions where both have the same first token
	Logit     float64   // largest |difference| of two logits
	Each      []float64 // KL(P || Q) of each position
	Distance  float64   // root of the mean square of the differences
}

// OutputFigures are those of an end-to-end check. Of a merge the reference is the
// base with the adapters in float32, Effect the base alone against it, Rounding the
// merge rounded once; of a quantized model the reference is the original.
type OutputFigures struct {
	Sequences, Positions int
	Model                LogitFigures
	Effect, Rounding     *LogitFigures
	Scale                float64 // of the change in the logits; 1 where all of it is there
	Limit                float64 // of Model.Distance; 0 for none
}

// otherRoundings is how often the ways that tools merge round something beside the sums:
// the base, the factors, their product, the change (see recipes).
const otherRoundings = 4

// EndToEnd runs base with adapters, and a merge of them, on the same tokens and adds to
// the report what is not the same. With E the logits of base and adapters in float32,
// R those of the same merge rounded once to the merged model's types and M the model's,
//
//	|M - E| <= (4 + adapters) · |R - E|
//
// in the root mean square: what tools round is the base, the factors, the product, the
// change, and a sum for each adapter, and none of it moves the weights by more than
// the last rounding of all. |R - E| is measured, not estimated; of a merge in float32
// R has one bit less, so that it stands for float32 arithmetic.
func EndToEnd(ctx context.Context, r *Report, base *checkpoint.Model, adapters []merge.Source, mo merge.Options, merged *checkpoint.Model, p Prompts, o Options) error {
	base, merged, err := runnable(base, merged, adapters)
	if err != nil {
		return err
	}
	mo.NoProvenance, mo.DType = true, tensor.F32
	m, err := merge.Plan(base, adapters, mo)
	if err != nil {
		return err
	}
	exact, config, err := seeMerge(base, m, o.Engine)
	if err != nil {
		return err
	}
	runs := []*outputRun{{of: exact, config: config}, {of: exact, config: config, types: merged}, {of: base, config: base.Config}, {of: merged, config: merged.Config}}
	logits, f, err := runAll(ctx, runs, p, o)
	if err != nil {
		return err
	}
	r.begin(familyOutput)
	reference, rounding, effect := logits[0], compareLogits(logits[0], logits[1]), compareLogits(logits[0], logits[2])
	f.Model = compareLogits(reference, logits[3])
	f.Rounding, f.Effect = &rounding, &effect
	f.Scale = scaleOfChange(logits[2], reference, logits[3])
	f.Limit = float64(otherRoundings+len(adapters)) * rounding.Distance
	r.Output = f
	switch {
	case !(f.Model.Distance <= f.Limit):
		r.add("output-differs", "", "the logits are %.3g from those of base and adapters, and hold the change at the scale %.3g",
			f.Model.Distance, f.Scale).measured(f.Model.Distance, f.Limit)
	case effect.Distance <= f.Limit:
		r.add("output-drowned", "", "the adapters move the logits by %.3g", effect.Distance).measured(effect.Distance, f.Limit)
	}
	return nil
}

// Allowed says how far the logits of a quantized model may be from the original's: what it
// is used for decides, nothing that could be derived. NaN allows anything.
type Allowed struct {
	KL   float64 // mean, in nats
	Top1 float64 // share of positions with the same first token, at least
}

// EndToEndQuantized runs a model and what was quantized from it on the same tokens, and
// adds a finding for each limit that it is beyond.
func EndToEndQuantized(ctx context.Context, r *Report, base, quantized *checkpoint.Model, p Prompts, allowed Allowed, o Options) error {
	logits, f, err := runAll(ctx, []*outputRun{{of: base, config: base.Config}, {of: quantized, config: quantized.Config}}, p, o)
	if err != nil {
		return err
	}
	r.begin(familyOutput)
	f.Model = compareLogits(logits[0], logits[1])
	r.Output = f
	if limit := allowed.KL; !math.IsNaN(limit) && !(f.Model.Mean <= limit) {
		r.add("output-kl", "", "the mean divergence is %.3g nats, %.3g at most are allowed", f.Model.Mean, limit).measured(f.Model.Mean, limit)
	}
	if limit := allowed.Top1; !math.IsNaN(limit) && !(f.Model.Top1 >= limit) {
		r.add("output-top1", "", "the first token is the same at %.4g of the positions, %.4g at least are asked for", f.Model.Top1, limit).measured(f.Model.Top1, limit)
	}
	return nil
}

// seeMerge makes a planned merge readable without writing it.
func seeMerge(base *checkpoint.Model, m *merge.Merge, o engine.Options) (*checkpoint.Model, *strictjson.Object, error) {
	var specs []tensor.Spec
	for i := range m.Layout.Files {
		for _, t := range m.Layout.Files[i].Tensors() {
			specs = append(specs, t.Spec)
		}
	}
	in := make([]engine.Source, len(m.Inputs))
	for i, c := range m.Inputs {
		in[i] = c
	}
	view, err := engine.NewView(m.Plan, specs, in, o)
	if err != nil {
		return nil, nil, err
	}
	config, err := strictjson.ParsePythonObject(m.Config.Encode())
	return base.As(view), config, err
}

// outputRun is a model to run, with its weights rounded to the types of another one.
type outputRun struct {
	of     *checkpoint.Model
	config *strictjson.Object
	types  *checkpoint.Model
}

// runAll runs the models on the same tokens.
func runAll(ctx context.Context, runs []*outputRun, p Prompts, o Options) ([]linalg.Matrix, *OutputFigures, error) {
	threads := o.Engine.WithDefaults().Jobs
	var decoders []*forward.Decoder
	for _, run := range runs {
		if run.of.GGUF() != nil {
			seen, err := convert.AsHF(run.of)
			if err != nil {
				return nil, nil, err
			}
			run.of, run.config = seen.Model, seen.Model.Config
		}
		d, err := forward.New(run.config, run.of)
		if err != nil {
			return nil, nil, &checkpoint.InputError{Path: run.of.Path, Err: err}
		}
		if run.types != nil {
			d.Round = roundTo(run.types)
		}
		if len(decoders) > 0 && d.Vocabulary() != decoders[0].Vocabulary() {
			return nil, nil, &checkpoint.InputError{Path: run.of.Path, Err: fmt.Errorf("%d logits, the reference has %d", d.Vocabulary(), decoders[0].Vocabulary())}
		}
		decoders = append(decoders, d)
	}
	ids := p.ids(decoders[0].Vocabulary())
	var all []linalg.Matrix
	for i, d := range decoders {
		logits, err := d.Logits(ctx, ids, threads)
		if err != nil {
			return nil, nil, &checkpoint.InputError{Path: runs[i].of.Path, Err: err}
		}
		all = append(all, logits)
	}
	return all, &OutputFigures{Sequences: len(ids), Positions: all[0].Rows}, nil
}

// ids returns the tokens.
func (p Prompts) ids(vocabulary int) [][]int64 {
	if p.Tokens != nil {
		return p.Tokens
	}
	random := rand.New(rand.NewPCG(p.Seed, 0))
	all := make([][]int64, p.Count)
	for i := range all {
		all[i] = make([]int64, p.Length)
		for j := range all[i] {
			all[i][j] = random.Int64N(int64(vocabulary))
		}
	}
	return all
}

// roundTo rounds weights to the types that a model stores them in; to one bit less
// than float32 where that is no coarser.
func roundTo(model *checkpoint.Model) func(string, []float32) {
	return func(name string, w []float32) {
		spec, ok := model.Lookup(name)
		codec, known := block.For(spec.DType)
		if !ok || !known || spec.DType.Bits() >= 32 {
			for i, v := range w {
				w[i] = dropBit(v)
			}
			return
		}
		raw := make([]byte, int64(len(w))*spec.DType.Bits()/8)
		codec.Encode32(raw, w)
		codec.Decode32(w, raw)
	}
}

// dropBit rounds to 23 bits, to the nearest and on a tie to the even one.
func dropBit(v float32) float32 {
	bits := math.Float32bits(v)
	if bits&0x7f800000 == 0x7f800000 {
		return v
	}
	return math.Float32frombits((bits + bits>>1&1) &^ 1)
}

// compareLogits compares row by row.
func compareLogits(p, q linalg.Matrix) LogitFigures {
	var f LogitFigures
	same, squares := 0, 0.0
	for t := range p.Rows {
		a, b := p.Data[t*p.Cols:][:p.Cols], q.Data[t*q.Cols:][:q.Cols]
		kl := divergence(a, b)
		f.Mean += kl / float64(p.Rows)
		f.Max = max(f.Max, kl)
		f.Each = append(f.Each, kl)
		if first(a) == first(b) {
			same++
		}
		for i := range a {
			d := math.Abs(float64(a[i]) - float64(b[i]))
			f.Logit = max(f.Logit, d)
			squares += d * d
		}
	}
	f.Top1 = float64(same) / float64(max(p.Rows, 1))
	f.Distance = math.Sqrt(squares / float64(max(len(p.Data), 1)))
	return f
}

// divergence is KL(P || Q) of two rows of logits. With d = p - q, e the difference of the
// logarithms of the sums, it is sum P·(d - e); each term is taken with Q/P - 1, which
// keeps it from being lost in rounding.
func divergence(p, q []float32) float64 {
	shiftP, shiftQ := logSum(p), logSum(q)
	kl := 0.0
	for i := range p {
		d := (float64(p[i]) - shiftP) - (float64(q[i]) - shiftQ)
		kl += math.Exp(float64(p[i])-shiftP) * (d + math.Expm1(-d))
	}
	return max(kl, 0)
}

// logSum is log(sum(exp(x))).
func logSum(x []float32) float64 {
	largest := float64(x[first(x)])
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(float64(v) - largest)
	}
	return largest + math.Log(sum)
}

// first is the index of the largest.
func first(x []float32) int {
	at := 0
	for i, v := range x {
		if v > x[at] {
			at = i
		}
	}
	return at
}

// scaleOfChange is c with M - B nearest to c·(E - B); NaN where E is B.
func scaleOfChange(base, exact, model linalg.Matrix) float64 {
	both, own := 0.0, 0.0
	for i, b := range base.Data {
		d := float64(exact.Data[i]) - float64(b)
		both += d * (float64(model.Data[i]) - float64(b))
		own += d * d
	}
	return both / own
}
