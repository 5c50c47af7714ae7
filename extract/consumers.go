package extract

import "fmt"

// This file says what programs that serve adapters make of one. It holds for vLLM 0.33
// and llama.cpp 0.5, with which testdata/gen/consumers.py compares.

// vllmRanks are the values of vLLM's --max-lora-rank (vllm/config/lora.py), of which
// vllmDefault is taken without it.
var vllmRanks = []int64{1, 8, 16, 32, 64, 128, 256, 320, 512}

const vllmDefault = 16

// decideConsumers records what the two can't take, or would take for something else.
// llama.cpp multiplies a pair by lora_alpha and divides by the pair's own rank, and
// reads no alpha_pattern (src/llama-adapter.h, get_scale). That is wrong without a
// word, so it is said of every adapter that has one, as no plain adapter does; the rest
// only of one that is meant for them.
func (x *Extraction) decideConsumers() error {
	alphas, ok, err := x.config.OptObject("alpha_pattern")
	if err != nil {
		return err
	}
	if ok && alphas.Len() > 0 {
		var names []string
		for name := range alphas.All() {
			names = append(names, name)
		}
		x.decide("llama-alpha-pattern", "llama.cpp reads no alpha_pattern and multiplies these modules by another scale: "+
			"--plain, which gives all one rank, or --alpha with any number gives an adapter that it reads right", names...)
	}
	if !x.opts.Plain {
		return nil
	}
	rank, _, err := x.config.OptInt("r")
	if err != nil {
		return err
	}
	x.decideVLLM(rank)
	var turned []string
	for _, m := range x.Certificate.Modules {
		if m.Form == pairForm.String() && m.Role == Conv1D.String() {
			turned = append(turned, m.Name)
		}
	}
	if len(turned) > 0 {
		x.decide("llama-conv1d", "llama.cpp does not load the factors of these layers: its converter transposes them like the weights, which this model type stores as (in, out)", turned...)
	}
	return nil
}

// decideVLLM says which option vLLM needs for a rank.
func (x *Extraction) decideVLLM(rank int64) {
	if rank <= vllmDefault {
		return
	}
	for _, limit := range vllmRanks {
		if rank <= limit {
			x.decide("vllm-rank", fmt.Sprintf("vLLM needs --max-lora-rank %d for rank %d: without, it takes up to %d", limit, rank, vllmDefault))
			return
		}
	}
	x.decide("vllm-rank", fmt.Sprintf("vLLM takes ranks up to %d and refuses this adapter of rank %d", vllmRanks[len(vllmRanks)-1], rank))
}
