package merge_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/merge"
)

// part is one side of a merge that FuzzPlan changes: config and tensors of the
// base, or of the adapter.
type part struct {
	config *strictjson.Object
	specs  []tensor.Spec
}

func (p part) clone() part {
	q := part{specs: slices.Clone(p.specs)}
	for i := range q.specs {
		q.specs[i].Shape = slices.Clone(q.specs[i].Shape)
	}
	q.config, _ = strictjson.ParseObject(p.config.Encode(""))
	return q
}

// oddValues are what a config key may say instead.
var oddValues = strings.Fields(`null true false 0 -1 1 2 3 4 8 65536 65537 1e300 0.5 "" "x" "none" "all" "all-linear" [] [0] [1] [-1] [99] ["x"] {} {"x":1}
	"olora" "pissa" "loftq" ".*" "(?!x)y" "a|b" {".*":2} {".*q.*":3} {"(?!x)y":2} [[0,1]] [[0,2],[1,2]] [[0,4096]] ["embed_tokens"] ["lm_head"]
	["q_proj"] [0,1,2] {"embed_tokens":[1]} "LORA" "ADALORA" "LOHA" "LOKR" "IA3" "VERA" "LN_TUNING" "TRAINABLE_TOKENS" "llama" "gpt2" "gpt_oss" "mixtral"`)

// oddKeys are keys that matter, of both configs.
var oddKeys = strings.Fields(`peft_type r lora_alpha alpha init_r use_rslora use_dora lora_bias rank_pattern alpha_pattern target_modules exclude_modules
	feedforward_modules target_parameters layers_to_transform layers_pattern layer_replication bias modules_to_save trainable_token_indices token_indices
	ensure_weight_tying init_lora_weights save_projection projection_prng_key kasa_config unknown_key
	model_type architectures tie_word_embeddings num_hidden_layers n_layer vocab_size quantization_config text_config`)

var oddDims = []int64{0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 32, 1 << 20, 1 << 40}

var oddComponents = strings.Fields(`lora_A lora_B lora_embedding_A lora_embedding_B lora_magnitude_vector lora_diag lora_E hada_w1_a hada_t1 lokr_w1 lokr_w1_a
	lokr_w2_b lokr_t2 ia3_l vera_lambda_d vera_A ln_tuning_layers trainable_tokens_delta base_layer token_adapter modules_to_save default
	original_module weight bias weight_scale weight_scale_inv experts gate_up_proj down_proj w1 w2 0 1 99 layers model lm_head embed_tokens out_proj in_proj_weight`)

// maxFuzzBytes bounds a file that FuzzPlan builds.
const maxFuzzBytes = 1 << 18

// change does what four bytes of a script say.
func (p *part) change(op, a, b, c byte) {
	if len(p.specs) == 0 {
		return
	}
	i := int(a) % len(p.specs)
	s := &p.specs[i]
	name := strings.Split(s.Name, ".")
	at := int(b) % len(name)
	switch op % 12 {
	case 0: // a tensor is missing
		p.specs = slices.Delete(p.specs, i, i+1)
	case 1: // a dimension is another
		if len(s.Shape) > 0 {
			s.Shape[int(b)%len(s.Shape)] = oddDims[int(c)%len(oddDims)]
		}
	case 2: // a dimension less
		if len(s.Shape) > 0 {
			s.Shape = s.Shape[:len(s.Shape)-1]
		}
	case 3: // one more
		s.Shape = append(s.Shape, oddDims[int(c)%len(oddDims)])
	case 4: // turned
		slices.Reverse(s.Shape)
	case 5: // another type
		s.DType = tensor.All()[int(b)%len(tensor.All())]
	case 6: // a component of the name is another
		name[at] = oddComponents[int(c)%len(oddComponents)]
		s.Name = strings.Join(name, ".")
	case 7: // one more
		s.Name = strings.Join(slices.Insert(name, at, oddComponents[int(c)%len(oddComponents)]), ".")
	case 8: // one less
		s.Name = strings.Join(slices.Delete(name, at, at+1), ".")
	case 9: // the shape of another tensor
		s.Shape = slices.Clone(p.specs[int(b)%len(p.specs)].Shape)
	case 10: // once more under a changed name
		twin := *s
		twin.Shape = slices.Clone(s.Shape)
		name[at] = oddComponents[int(c)%len(oddComponents)]
		twin.Name = strings.Join(name, ".")
		p.specs = append(p.specs, twin)
	case 11: // a config key
		o, err := strictjson.ParseObject([]byte(`{"v":` + oddValues[int(c)%len(oddValues)] + `}`))
		if err != nil {
			return
		}
		v, _ := o.Get("v")
		p.config.Set(oddKeys[int(b)%len(oddKeys)], v)
	}
}

// file builds the weights; tensors that no header can hold are left out.
func (p *part) file() ([]byte, error) {
	var specs []tensor.Spec
	seen := make(map[string]bool)
	total := int64(0)
	for _, s := range p.specs {
		valid, err := tensor.NewSpec(s.Name, s.DType, s.Shape)
		if err != nil || seen[s.Name] || s.Name == "__metadata__" || total+valid.Size() > maxFuzzBytes {
			continue
		}
		seen[s.Name] = true
		total += valid.Size()
		specs = append(specs, valid)
	}
	return encodeFile(specs, nil, func(s tensor.Spec) []float64 { return values(s.Name, s.NumElements()) })
}

// FuzzPlan changes config and tensors of base and adapter: whatever they say,
// there is a plan that runs, or a one-line error of a known type, and never a
// panic. It starts from the golden cases, one of every kind; a script makes the
// changes, four bytes each. The JSON and the headers themselves are the business
// of the fuzz targets of their packages.
func FuzzPlan(f *testing.F) {
	seeds := fuzzSeeds(f)
	for i := range seeds {
		f.Add(uint16(i), []byte{})
		f.Add(uint16(i), []byte{byte(i), 1, 2, 3, byte(i) + 128, 4, 5, 6})
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, seed uint16, script []byte) {
		sides := [2]part{}
		for i, p := range seeds[int(seed)%len(seeds)] {
			sides[i] = p.clone()
		}
		for ; len(script) >= 4 && len(script) < 64; script = script[4:] {
			sides[script[0]>>7].change(script[0]&0x7f, script[1], script[2], script[3])
		}
		work, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(work)
		for i, names := range [2][3]string{{"base", "model.safetensors", "config.json"}, {"lora", "adapter_model.safetensors", "adapter_config.json"}} {
			data, err := sides[i].file()
			if err != nil {
				return
			}
			if err := errors.Join(os.Mkdir(filepath.Join(work, names[0]), 0o777), os.WriteFile(filepath.Join(work, names[0], names[1]), data, 0o666),
				os.WriteFile(filepath.Join(work, names[0], names[2]), sides[i].config.Encode(""), 0o666)); err != nil {
				t.Fatal(err)
			}
		}
		planAndRun(t, filepath.Join(work, "base"), filepath.Join(work, "lora"))
	})
}

// fuzzSeeds reads base and adapter of every golden case.
func fuzzSeeds(f *testing.F) [][2]part {
	golden := filepath.Join("..", "testdata", "golden", "peft")
	cases, err := os.ReadDir(filepath.Join(golden, "cases"))
	if err != nil {
		f.Fatal(err)
	}
	var seeds [][2]part
	for _, c := range cases {
		var about struct{ Base string }
		data, err := os.ReadFile(filepath.Join(golden, "cases", c.Name(), "case.json"))
		if err == nil {
			err = json.Unmarshal(data, &about)
		}
		if err != nil {
			f.Fatal(err)
		}
		base, err := checkpoint.Open(filepath.Join(golden, "bases", about.Base), hfrepo.Cache{})
		if err != nil {
			f.Fatal(err)
		}
		a, err := checkpoint.OpenAdapter(filepath.Join(golden, "cases", c.Name(), "adapter"), hfrepo.Cache{})
		if err != nil {
			f.Fatal(err)
		}
		pair := [2]part{{base.Config, base.Specs()}, {a.Config, a.Specs()}}
		if pair[0].config == nil {
			pair[0].config = strictjson.NewObject()
		}
		seeds = append(seeds, pair)
		base.Close()
		a.Close()
	}
	return seeds
}

// planAndRun wants a result or an error that a user can do something with.
func planAndRun(t *testing.T, basePath, adapterPath string) {
	t.Helper()
	base, err := checkpoint.Open(basePath, hfrepo.Cache{})
	if err != nil {
		checkKnown(t, err)
		return
	}
	defer base.Close()
	source, err := checkpoint.OpenAdapter(adapterPath, hfrepo.Cache{})
	if err != nil {
		checkKnown(t, err)
		return
	}
	defer source.Close()
	a, err := adapter.Open(source)
	if err != nil {
		checkKnown(t, err)
		return
	}
	m, err := merge.Plan(base, []merge.Source{{Adapter: a, Weight: 0.5}}, merge.Options{Output: "out"})
	if err != nil {
		checkKnown(t, err)
		return
	}
	_, err = execute(t, m)
	switch {
	case err == nil, errors.As(err, new(*engine.NonFiniteError)), errors.As(err, new(*engine.MemoryError)):
	case strings.Contains(err.Error(), "the OLoRA start is not unique"), strings.Contains(err.Error(), "did not converge"):
	default:
		t.Errorf("the plan does not run: %v", err)
	}
}

// checkKnown wants a one-line error of a type that the command line ends with
// exit 4 for.
func checkKnown(t *testing.T, err error) {
	t.Helper()
	if !errors.As(err, new(*checkpoint.InputError)) && !errors.As(err, new(*adapter.MismatchError)) {
		t.Errorf("error %v of type %T", err, err)
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("error of several lines: %q", err)
	}
}
