package adapter_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/adapter"
)

// TestTypes guards that every type is read, can't become weights, or can't yet,
// and that the message names it.
func TestTypes(t *testing.T) {
	read := map[string]string{
		"LORA": `"r":1,"lora_alpha":1`, "ADALORA": `"init_r":1,"lora_alpha":1`, "LOHA": `"r":1,"alpha":1`, "LOKR": `"r":1,"alpha":1`,
		"IA3": `"a":null`, "VERA": `"r":1`, "LN_TUNING": `"a":null`, "TRAINABLE_TOKENS": `"token_indices":[1]`,
	}
	unmergeable := strings.Fields(`PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT CPT CARTRIDGE XLORA LILY POLY SHADOW`)
	unsupported := strings.Fields(`ADAMSS BOFT BEFT OFT FROD PVERA FOURIERFT GLORA HRA VBLORA UNILORA MISS BONE RANDLORA ROAD HIRA SHIRA
		C3A WAVEFT OSF DELORA GRALORA TINYLORA PSOFT PEANUT SUPERTUNING DEFT`)
	for name, rest := range read {
		if c := mustParse(t, `{"peft_type":"`+name+`",`+rest+`}`); c.Type != name {
			t.Errorf("%s: type %q", name, c.Type)
		}
	}
	for _, name := range unmergeable {
		_, err := parse(t, `{"peft_type":"`+name+`"}`)
		checkError(t, err, name, "can't be merged")
		if e, ok := errors.AsType[*adapter.UnmergeableError](err); !ok || e.Type != name || e.Reason == "" {
			t.Errorf("%s: error %#v", name, err)
		}
	}
	for _, name := range unsupported {
		_, err := parse(t, `{"peft_type":"`+name+`"}`)
		checkError(t, err, name, "not supported yet")
		if _, ok := errors.AsType[*adapter.UnsupportedError](err); !ok {
			t.Errorf("%s: error %#v", name, err)
		}
	}
	for _, name := range []string{"LORA9", "lora", "", "Lora\\n"} {
		_, err := parse(t, `{"peft_type":"`+name+`"}`)
		checkError(t, err, "peft_type", "is unknown")
	}
}

// TestConfigRefuses guards what makes a config useless, each with what the
// message must say.
func TestConfigRefuses(t *testing.T) {
	const lora = `"peft_type":"LORA","r":4,"lora_alpha":8`
	for _, c := range []struct {
		name, config string
		want         []string
	}{
		{"no type", `{"r":4}`, []string{"peft_type", "missing"}},
		{"type is a number", `{"peft_type":1}`, []string{"peft_type"}},
		{"no rank", `{"peft_type":"LORA","lora_alpha":8}`, []string{`"r"`, "missing"}},
		{"rank 0", `{"peft_type":"LORA","r":0,"lora_alpha":8}`, []string{"r is 0"}},
		{"rank below 0", `{"peft_type":"LORA","r":-4,"lora_alpha":8}`, []string{"r is -4"}},
		{"huge rank", `{"peft_type":"LORA","r":65537,"lora_alpha":8}`, []string{"r is 65537"}},
		{"rank with a fraction", `{"peft_type":"LORA","r":4.0,"lora_alpha":8}`, []string{`"r"`, "integer"}},
		{"rank as text", `{"peft_type":"LORA","r":"4","lora_alpha":8}`, []string{`"r"`, "integer"}},
		{"rank beyond 64 bits", `{"peft_type":"LORA","r":99999999999999999999,"lora_alpha":8}`, []string{`"r"`}},
		{"no alpha", `{"peft_type":"LORA","r":4}`, []string{`"lora_alpha"`, "missing"}},
		{"alpha of another type", `{"peft_type":"LOHA","r":4,"lora_alpha":8}`, []string{`"alpha"`, "missing"}},
		{"alpha is null", `{"peft_type":"LORA","r":4,"lora_alpha":null}`, []string{`"lora_alpha"`}},
		{"huge alpha", `{"peft_type":"LORA","r":4,"lora_alpha":1e999}`, []string{`"lora_alpha"`}},
		{"initial rank of AdaLoRA", `{"peft_type":"ADALORA","r":4,"lora_alpha":8}`, []string{`"init_r"`, "missing"}},
		{"rsLoRA as a number", `{` + lora + `,"use_rslora":1}`, []string{"use_rslora"}},
		{"DoRA as text", `{` + lora + `,"use_dora":"true"}`, []string{"use_dora"}},
		{"rank pattern is a list", `{` + lora + `,"rank_pattern":[]}`, []string{"rank_pattern"}},
		{"rank pattern 0", `{` + lora + `,"rank_pattern":{"q":0}}`, []string{`rank_pattern "q"`, "rank 0"}},
		{"huge rank pattern", `{` + lora + `,"rank_pattern":{"q":65537}}`, []string{`rank_pattern "q"`}},
		{"rank pattern as text", `{` + lora + `,"rank_pattern":{"q":"4"}}`, []string{`rank_pattern "q"`}},
		{"alpha pattern as text", `{` + lora + `,"alpha_pattern":{"q":"4"}}`, []string{`alpha_pattern "q"`}},
		{"targets are a number", `{` + lora + `,"target_modules":7}`, []string{"target_modules"}},
		{"targets are numbers", `{` + lora + `,"target_modules":[7]}`, []string{"target_modules"}},
		{"excluded are an object", `{` + lora + `,"exclude_modules":{}}`, []string{"exclude_modules"}},
		{"targeted parameters are text", `{` + lora + `,"target_parameters":"x"}`, []string{"target_parameters"}},
		{"layers as text", `{` + lora + `,"layers_to_transform":["1"]}`, []string{"layers_to_transform"}},
		{"layers pattern as a number", `{` + lora + `,"layers_pattern":1}`, []string{"layers_pattern"}},
		{"replication without an end", `{` + lora + `,"layer_replication":[[0]]}`, []string{"layer_replication entry 0"}},
		{"replication backwards", `{` + lora + `,"layer_replication":[[0,2],[2,2]]}`, []string{"layer_replication entry 1"}},
		{"replication from below 0", `{` + lora + `,"layer_replication":[[-1,2]]}`, []string{"layer_replication entry 0"}},
		{"replication of too many", `{` + lora + `,"layer_replication":[[0,4097]]}`, []string{"layer_replication entry 0"}},
		{"replication makes too many", `{` + lora + `,"layer_replication":[[0,4096],[0,1]]}`, []string{"more than 4096 layers"}},
		{"bias", `{` + lora + `,"bias":"some"}`, []string{"bias", `"some"`}},
		{"saved modules as text", `{` + lora + `,"modules_to_save":"lm_head"}`, []string{"modules_to_save"}},
		{"tying as text", `{` + lora + `,"ensure_weight_tying":"yes"}`, []string{"ensure_weight_tying"}},
		{"tokens as text", `{` + lora + `,"trainable_token_indices":"1"}`, []string{"trainable_token_indices"}},
		{"tokens of a module as text", `{` + lora + `,"trainable_token_indices":{"emb":["1"]}}`, []string{"trainable_token_indices", `"emb"`}},
		{"unknown start", `{` + lora + `,"init_lora_weights":"magic"}`, []string{"init_lora_weights", `"magic"`}},
		{"start is a number", `{` + lora + `,"init_lora_weights":1}`, []string{"init_lora_weights"}},
		{"aLoRA", `{` + lora + `,"alora_invocation_tokens":[1]}`, []string{"aLoRA can't be merged"}},
		{"Arrow", `{` + lora + `,"arrow_config":{"a":1}}`, []string{"Arrow can't be merged"}},
		{"QA-LoRA", `{` + lora + `,"use_qalora":true}`, []string{"QA-LoRA", "not supported"}},
		{"BD-LoRA", `{` + lora + `,"use_bdlora":{"a":1}}`, []string{"BD-LoRA", "not supported"}},
		{"Megatron", `{` + lora + `,"megatron_config":{"a":1}}`, []string{"Megatron", "not supported"}},
		{"KaSA with DoRA", `{` + lora + `,"kasa_config":{"a":1},"use_dora":true}`, []string{"KaSA with DoRA", "not supported"}},
		{"DoRA of AdaLoRA", `{"peft_type":"ADALORA","init_r":4,"lora_alpha":8,"use_dora":true}`, []string{"use_dora", "ADALORA"}},
		{"bias of LoHa", `{"peft_type":"LOHA","r":4,"alpha":8,"lora_bias":true}`, []string{"lora_bias", "LOHA"}},
		{"KaSA of IA3", `{"peft_type":"IA3","kasa_config":{"a":1}}`, []string{"kasa_config", "IA3"}},
		{"broken feed-forward expression", `{"peft_type":"IA3","feedforward_modules":"(?!a)b"}`, []string{"feedforward_modules", "(?!a)b"}},
		{"pruned ranks are numbers", `{"peft_type":"ADALORA","init_r":4,"lora_alpha":8,"rank_pattern":{"m.q.lora_E":2}}`, []string{`rank_pattern "m.q.lora_E"`}},
		{"pruned ranks are a list of numbers", `{"peft_type":"ADALORA","init_r":4,"lora_alpha":8,"rank_pattern":{"m.q.lora_E":[1]}}`, []string{`rank_pattern "m.q.lora_E"`}},
		{"pruned ranks of no module", `{"peft_type":"ADALORA","init_r":4,"lora_alpha":8,"rank_pattern":{"m.q":[true]}}`, []string{`rank_pattern "m.q"`}},
		{"pruned ranks twice", `{"peft_type":"ADALORA","init_r":4,"lora_alpha":8,"rank_pattern":{"m.q.lora_E":[true],"base_model.model.m.q.lora_E":[true]}}`,
			[]string{"of one module"}},
		{"projection flag as text", `{"peft_type":"VERA","r":4,"save_projection":"no"}`, []string{"save_projection"}},
		{"projection key as text", `{"peft_type":"VERA","r":4,"projection_prng_key":"0"}`, []string{"projection_prng_key"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(t, c.config)
			checkError(t, err, c.want...)
		})
	}
}

// TestConfigErrorsAreStable guards that of two faults always the same one is
// named.
func TestConfigErrorsAreStable(t *testing.T) {
	for _, config := range []string{
		`{"peft_type":"LORA","r":4,"lora_alpha":8,"use_rslora":1,"use_dora":1,"lora_bias":1}`,
		`{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":1,"exclude_modules":1,"feedforward_modules":1}`,
		`{"peft_type":"ADALORA","init_r":4,"lora_alpha":8,"rank_pattern":{"b.lora_E":1,"a.lora_E":1}}`,
	} {
		_, first := parse(t, config)
		for range 50 {
			if _, err := parse(t, config); err.Error() != first.Error() {
				t.Fatalf("once %q, once %q", first, err)
			}
		}
	}
}

func TestConfig(t *testing.T) {
	c := mustParse(t, `{"peft_type":"LORA","r":4,"lora_alpha":8,"use_dora":true,"lora_bias":true,"bias":"lora_only","modules_to_save":["head"],
		"trainable_token_indices":{"embed_tokens":[1,2],"model.embed_tokens":[3]},"layer_replication":[[0,2],[1,3]],
		"layers_to_transform":3,"layers_pattern":"h","init_lora_weights":"PISSA_niter_16","ensure_weight_tying":true}`)
	if !c.DoRA || !c.LoRABias || c.KaSA || c.RSLoRA || !c.EnsureTied || c.Bias != "lora_only" || c.Init != "pissa_niter_16" {
		t.Errorf("config %+v", c)
	}
	if !slices.Equal(c.LayersToUse, []int64{3}) || !slices.Equal(c.LayersPattern, []string{"h"}) || !slices.Equal(c.ModulesToSave, []string{"head"}) {
		t.Errorf("layers %v, %q, saved %q", c.LayersToUse, c.LayersPattern, c.ModulesToSave)
	}
	if !slices.Equal(c.LayerReplication, [][2]int64{{0, 2}, {1, 3}}) {
		t.Errorf("replication %v", c.LayerReplication)
	}
	if rows, ok := c.TokensOf("x.model.embed_tokens"); !ok || !slices.Equal(rows, []int64{3}) {
		t.Errorf("tokens of the longer name: %v, %v", rows, ok)
	}
	if rows, ok := c.TokensOf("x.embed_tokens"); !ok || !slices.Equal(rows, []int64{1, 2}) {
		t.Errorf("tokens of the shorter name: %v, %v", rows, ok)
	}
	if rows, ok := c.TokensOf("lm_head"); ok {
		t.Errorf("tokens of a module that is not named: %v", rows)
	}
	list := mustParse(t, `{"peft_type":"TRAINABLE_TOKENS","token_indices":[7]}`)
	if rows, ok := list.TokensOf("anything"); !ok || !slices.Equal(rows, []int64{7}) {
		t.Errorf("tokens of a list: %v, %v", rows, ok)
	}
}

// TestInit guards which starts leave the base alone.
func TestInit(t *testing.T) {
	for value, want := range map[string]string{
		`true`: "", `false`: "", `null`: "", `"gaussian"`: "", `"eva"`: "", `"orthogonal"`: "", `"mica"`: "",
		`"olora"`: "olora", `"OLoRA"`: "olora", `"corda"`: "corda", `"lora_ga"`: "lora_ga", `"loftq"`: "loftq", `"pissa"`: "pissa",
	} {
		if c := mustParse(t, `{"peft_type":"LORA","r":4,"lora_alpha":8,"init_lora_weights":`+value+`}`); c.Init != want {
			t.Errorf("init_lora_weights %s: %q, want %q", value, c.Init, want)
		}
	}
}

func TestPrunedRank(t *testing.T) {
	c := mustParse(t, `{"peft_type":"ADALORA","init_r":4,"lora_alpha":8,"rank_pattern":{
		"base_model.model.m.q.lora_E":[true,false,true],"m.k.lora_E.default":[false],"m.v.lora_E":[]}}`)
	for module, want := range map[string]int64{"m.q": 2, "m.k": 0, "m.v": 0} {
		if got, ok := c.PrunedRank(module); !ok || got != want {
			t.Errorf("%s: %d, %v; want %d", module, got, ok, want)
		}
	}
	if _, ok := c.PrunedRank("q"); ok {
		t.Error("a module that is not named was pruned")
	}
}

// TestUnknownKeys guards that a key that is switched on and not understood is
// reported, in the order of the file, and one that is off is not.
func TestUnknownKeys(t *testing.T) {
	c := mustParse(t, `{"peft_type":"LORA","zeta":1,"r":4,"lora_alpha":8,"use_new_thing":true,"off":false,"none":null,"empty":[],"blank":"",
		"zero":0,"nothing":{},"save_projection":true,"alpha_thing":"x"}`)
	if want := []string{"zeta", "use_new_thing", "save_projection", "alpha_thing"}; !slices.Equal(c.Unknown, want) {
		t.Errorf("unknown %q, want %q", c.Unknown, want)
	}
	c = mustParse(t, `{"peft_type":"VERA","r":4,"save_projection":true,"vera_dropout":0.1,"d_initial":0.1}`)
	if len(c.Unknown) != 0 || !c.SaveProjection {
		t.Errorf("VeRA's own keys: unknown %q, save_projection %v", c.Unknown, c.SaveProjection)
	}
}
