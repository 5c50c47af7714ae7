package adapter

import (
	"fmt"
	"strings"
)

// Kind is one row of the table of PEFT types: the names of the parts that make
// up an adapted module, the keys of its config beyond the common ones, and the
// tensors that belong to the whole model.
type Kind struct {
	Type   string
	Parts  []string
	Shared []string
	Ignore []string // parts that training leaves in the file and a merge has no use for
	Keys   []string
}

// kinds are the PEFT types whose result is a weight. To add one, add its row
// here and its file in package merge.
var kinds = []Kind{
	{
		Type: "LORA",
		Parts: []string{"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
			"lora_diag"},
		Ignore: []string{"lora_velora_embed", "lora_monteclora_sampler"},
	},
	{
		Type:  "ADALORA",
		Parts: []string{"lora_A", "lora_B", "lora_E"},
		Keys: []string{"init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
			"orth_reg_weight", "total_step"},
	},
	{
		Type:  "LOHA",
		Parts: []string{"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"},
		Keys:  []string{"use_effective_conv2d"},
	},
	{
		Type:  "LOKR",
		Parts: []string{"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"},
		Keys:  []string{"use_effective_conv2d", "decompose_both", "decompose_factor"},
	},
	{
		Type:  "IA3",
		Parts: []string{"ia3_l"},
		Keys:  []string{"feedforward_modules", "init_ia3_weights"},
	},
	{
		Type:   "VERA",
		Parts:  []string{"vera_lambda_d", "vera_lambda_b"},
		Shared: []string{"vera_A", "vera_B"},
		Keys:   []string{"save_projection", "projection_prng_key", "vera_dropout", "d_initial"},
	},
	{Type: "LN_TUNING", Parts: []string{"ln_tuning_layers"}},
	{Type: "TRAINABLE_TOKENS", Parts: []string{"trainable_tokens_delta"}, Keys: []string{"token_indices"}},
}

// unmergeable are the PEFT types that no weights can stand for, with the
// reason.
var unmergeable = map[string]string{
	"PROMPT_TUNING":           "prompt tuning adds virtual tokens before the input, it has no weights to merge",
	"MULTITASK_PROMPT_TUNING": "prompt tuning adds virtual tokens before the input, it has no weights to merge",
	"P_TUNING":                "P-tuning adds virtual tokens before the input, it has no weights to merge",
	"PREFIX_TUNING":           "a prefix adds keys and values whose share depends on the input, it has no weights to merge",
	"ADAPTION_PROMPT":         "an adaption prompt adds keys and values behind a gate, it has no weights to merge",
	"CPT":                     "context-aware prompt tuning adds virtual tokens before the input, it has no weights to merge",
	"CARTRIDGE":               "a cartridge adds keys and values, it has no weights to merge",
	"XLORA":                   "X-LoRA mixes its adapters by the input: no single set of weights computes the same",
	"LILY":                    "LILY routes by the input: no single set of weights computes the same",
	"POLY":                    "Poly mixes its adapters by the task: no single set of weights computes the same",
	"SHADOW":                  "a shadow network runs beside the model: no single set of weights computes the same",
}

// planned are PEFT types whose result is a weight but that are not read yet.
var planned = strings.Fields(`ADAMSS BOFT BEFT OFT FROD PVERA FOURIERFT GLORA HRA VBLORA UNILORA MISS BONE
	RANDLORA ROAD HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA TINYLORA PSOFT PEANUT SUPERTUNING DEFT`)

// UnmergeableError says that an adapter can't become weights, and why.
type UnmergeableError struct{ Type, Reason string }

func (e *UnmergeableError) Error() string {
	return fmt.Sprintf("%s can't be merged: %s", e.Type, e.Reason)
}

// UnsupportedError says that an adapter could become weights but that loratool
// can't do it yet.
type UnsupportedError struct{ What string }

func (e *UnsupportedError) Error() string { return e.What + " adapters are not supported yet" }

// lookupKind finds the row of a PEFT type.
func lookupKind(name string) (*Kind, error) {
	for i := range kinds {
		if kinds[i].Type == name {
			return &kinds[i], nil
		}
	}
	if reason, ok := unmergeable[name]; ok {
		return nil, &UnmergeableError{name, reason}
	}
	for _, p := range planned {
		if p == name {
			return nil, &UnsupportedError{name}
		}
	}
	return nil, fmt.Errorf("peft_type %q is unknown", name)
}
