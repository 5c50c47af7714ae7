package cli

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant"
)

// trainBases are the values of --train-base: what QLoRA quantizes a base to.
var trainBases = map[string]quant.Options{
	"nf4": {Type: quant.NF4}, "nf4-dq": {Type: quant.NF4, DoubleQuant: true},
	"fp4": {Type: quant.FP4}, "fp4-dq": {Type: quant.FP4, DoubleQuant: true},
	"int8": {Type: quant.Int8},
}

func checkTrainBase(name string) error {
	if _, ok := trainBases[name]; !ok && name != "" {
		return usagef("--train-base: %q is not one of %s", name, strings.Join(slices.Sorted(maps.Keys(trainBases)), ", "))
	}
	return nil
}

// simulateTraining gives a merge the base that its adapters were trained on: every
// weight that transformers would quantize, quantized and back.
func simulateTraining(base *checkpoint.Model, name string, o *merge.Options) (*quant.RoundTrip, error) {
	if name == "" {
		return nil, nil
	}
	if kinds := base.Quantization(); len(kinds) > 0 {
		return nil, &checkpoint.InputError{Path: base.Path, Err: fmt.Errorf("it is quantized already: --train-base is for the 16-bit base of a QLoRA training")}
	}
	trip, err := quant.NewRoundTrip(base, trainBases[name])
	if err != nil {
		return nil, asUsage(err)
	}
	o.TrainBase, o.TrainedOn = trip, name
	return trip, nil
}

// trainBaseJSON says how far the base that an adapter was trained on is from the
// original one, and how that compares with what the adapter changes.
type trainBaseJSON struct {
	Type  string `json:"type"`
	Noise number `json:"noise_norm"`     // ||Q - W|| over the quantized weights
	Error number `json:"relative_error"` // ||Q - W|| / ||W||
	Ratio number `json:"noise_over_change"`
}

// describeTraining sums the figures up.
func describeTraining(name string, trip *quant.RoundTrip, r engine.Report) *trainBaseJSON {
	var noise, norm, change float64
	for _, f := range trip.Figures() {
		noise += f.Error * f.Error * f.Norm * f.Norm
		norm += f.Norm * f.Norm
	}
	for _, t := range r.Tensors {
		change += t.DeltaNorm * t.DeltaNorm
	}
	doc := &trainBaseJSON{Type: name, Noise: number(math.Sqrt(noise))}
	if norm > 0 {
		doc.Error = number(math.Sqrt(noise / norm))
	}
	if change > 0 {
		doc.Ratio = number(math.Sqrt(noise / change))
	}
	return doc
}

// print says it in a line.
func (t *trainBaseJSON) print(a *App) {
	a.note("%s moves the base by %.4g, %.4f of its norm and %.3g times the adapters' change: merged into the original base, the model is that far from the trained one", t.Type, t.Noise, t.Error, t.Ratio)
}
