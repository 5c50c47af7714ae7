package verify_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/loftq"
	"github.com/loratool/loratool/verify"
)

// TestLoftQReport finds pairs that were made for another scale, that correct nothing
// or make it worse, and none of that where the scale is right.
func TestLoftQReport(t *testing.T) {
	r := repair(t, loftq.Options{}, tensor.F32)
	weight := "loftq-scale " + r.w.name
	norm := array{"model.norm.weight", tensor.F32, tensor.Shape{4}, make([]float64, 4)}
	saved := norm
	saved.name = "base_model.model.model.norm.weight"
	zero := r.b
	zero.values = make([]float64, len(r.b.values))
	caught := make(map[string]bool)
	for _, c := range []struct {
		name  string
		alpha float64
		more  string
		pair  []array
		want  []string
	}{
		{"clean", pairRank, "", []array{r.a, r.b}, nil},
		{"half", pairRank / 2.0, "", []array{r.a, r.b}, []string{weight}},
		{"a quarter, as PEFT's default alpha for rank 64", pairRank / 4.0, `, "init_lora_weights": "loftq"`, []array{r.a, r.b}, []string{weight}},
		// At twice the scale R - 2P is as long as R: beyond that the pair is worse than none.
		{"three times", 3 * pairRank, "", []array{r.a, r.b}, []string{weight, "loftq-worse " + r.w.name}},
		{"idle", pairRank, "", []array{r.a, zero}, []string{"loftq-empty " + r.w.name}},
		{"more than pairs", pairRank, `, "modules_to_save": ["norm"]`, []array{r.a, r.b, saved}, []string{"loftq-other model.norm.weight"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			const llama = `{"model_type": "llama"}`
			got, err := verify.LoftQReport(t.Context(), openModel(t, llama, r.w, norm), openModel(t, llama, r.q, norm),
				openAdapter(t, loraConfig(c.alpha, c.more), c.pair...), verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if list := found(got); !slices.Equal(list, c.want) {
				t.Errorf("found %q, want %q", list, c.want)
			}
			for _, f := range got.Findings {
				caught[f.Code] = true
				if f.Code == "loftq-scale" && math.Abs(*f.Value*c.alpha/pairRank-1) > got.LoftQ.Modules[0].Limit {
					t.Errorf("the best scale is %v of the scale, want %v", *f.Value, pairRank/c.alpha)
				}
			}
		})
	}
	for _, code := range verify.Codes() {
		if code.Family == "loftq" && !caught[code.Name] {
			t.Errorf("no planted defect shows %q", code.Name)
		}
	}
}

// TestLoftQReportRefused guards that an adapter of another kind is a fault of the
// input and not of the program.
func TestLoftQReportRefused(t *testing.T) {
	r := repair(t, loftq.Options{}, tensor.F32)
	const llama = `{"model_type": "llama"}`
	_, err := verify.LoftQReport(t.Context(), openModel(t, llama, r.w), openModel(t, llama, r.q),
		openAdapter(t, loraConfig(0, ""), r.a, r.b), verify.Options{})
	if _, ok := errors.AsType[*checkpoint.InputError](err); !ok {
		t.Errorf("error %v of type %T", err, err)
	}
}
