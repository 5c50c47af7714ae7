package testmodel

import (
	"math"
	"slices"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
)

// LoRA is a PEFT adapter for the linear layers of a [Llama], stored as F32,
// with alpha twice the rank.
type LoRA struct {
	Rank   int64
	Layers int64 // only the first so many layers; 0 is all
}

// Targets returns the weights of the base that the adapter changes.
func (l LoRA) Targets(m Llama) []string {
	var names []string
	for _, t := range l.linears(m) {
		names = append(names, t.module+".weight")
	}
	return names
}

// Write makes an adapter folder. Both factors are noise, as after training, so
// that every weight of a target changes.
func (l LoRA) Write(dir string, m Llama, seed uint64) error {
	var specs []tensor.Spec
	for _, t := range l.linears(m) {
		name := "base_model.model." + t.module
		specs = append(specs,
			tensor.Spec{Name: name + ".lora_A.weight", DType: tensor.F32, Shape: tensor.Shape{l.Rank, t.in}},
			tensor.Spec{Name: name + ".lora_B.weight", DType: tensor.F32, Shape: tensor.Shape{t.out, l.Rank}})
	}
	config, err := l.config(m)
	if err != nil {
		return err
	}
	sidecars := []checkpoint.Sidecar{{Name: "adapter_config.json", Data: config}}
	// PEFT writes one file, whatever its size.
	layout, err := checkpoint.NewLayout(dir, specs, sidecars, checkpoint.Options{
		ShardSize: math.MaxInt64, Weights: "adapter_model.safetensors",
	})
	if err != nil {
		return err
	}
	return write(layout, newNoise(seed))
}

func (l LoRA) linears(m Llama) []linear {
	var all []linear
	for i := range l.layers(m) {
		all = append(all, m.linears(i)...)
	}
	return all
}

func (l LoRA) layers(m Llama) int64 {
	if l.Layers == 0 {
		return m.Layers
	}
	return min(l.Layers, m.Layers)
}

// config is the adapter_config.json that PEFT would write, without the keys of
// other kinds of adapters.
func (l LoRA) config(m Llama) ([]byte, error) {
	var layers any // null is all
	if n := l.layers(m); n < m.Layers {
		layers = slices.Collect(func(yield func(int64) bool) {
			for i := range n {
				if !yield(i) {
					return
				}
			}
		})
	}
	return encode(map[string]any{
		"base_model_name_or_path": "base",
		"bias":                    "none",
		"fan_in_fan_out":          false,
		"inference_mode":          true,
		"init_lora_weights":       true,
		"layers_to_transform":     layers,
		"lora_alpha":              2 * l.Rank,
		"lora_dropout":            0.0,
		"modules_to_save":         nil,
		"peft_type":               "LORA",
		"r":                       l.Rank,
		"target_modules":          []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
		"task_type":               "CAUSAL_LM",
		"use_dora":                false,
		"use_rslora":              false,
	})
}
