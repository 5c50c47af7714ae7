package merge

import (
	"fmt"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
)

// openInit prepares the adapter as it was before training, when making it has
// changed the base. Without it only starts that follow from the base alone can
// be undone.
func (r *reader) openInit(init *adapter.Adapter) error {
	name := r.config.Init
	if init == nil {
		if name == "" || name == "olora" {
			if name != "" || r.config.KaSA {
				r.p.decide("start-recomputed", fmt.Sprintf("%s was made by changing the base (%s): the change is recomputed from it", r.adapter.Source.Name, r.startName()))
			}
			return nil
		}
		return &checkpoint.InputError{Path: r.adapter.Source.Path, Err: &StartError{Init: name}}
	}
	if name == "" {
		return &checkpoint.InputError{Path: r.adapter.Source.Path, Err: fmt.Errorf(
			"it was made without changing the base: it has no use for an initial adapter")}
	}
	if name == "loftq" {
		return &checkpoint.InputError{Path: r.adapter.Source.Path, Err: &StartError{Init: name}}
	}
	if init.Config.Type != "LORA" {
		return &checkpoint.InputError{Path: init.Source.Path, Err: fmt.Errorf("an initial adapter has to be a LoRA, this is %s", init.Config.Type)}
	}
	if err := checkFinite(init); err != nil {
		return err
	}
	aligned, err := adapter.Align(init, r.p.view, r.p.family())
	if err != nil {
		return err
	}
	if err := r.checkStarts(aligned); err != nil {
		return err
	}
	r.init = aligned
	r.initIn = r.p.addInput("init-adapter", init.Source, 1)
	r.p.decide("start-subtracted", fmt.Sprintf("%s was made by changing the base (%s): the product of %s is taken out of the base first",
		r.adapter.Source.Name, name, init.Source.Name))
	return nil
}

// checkStarts refuses a start that the trained adapter has no module for: making
// it has changed the base there too.
func (r *reader) checkStarts(init *adapter.Aligned) error {
	type id struct {
		name  string
		depth int
	}
	trained := make(map[id]bool)
	for _, t := range r.adapter.Targets {
		trained[id{t.Name, t.Depth}] = true
	}
	for _, t := range init.Targets {
		if !trained[id{t.Name, t.Depth}] {
			return init.Mismatch(t.Parts[anyPart(t)].Name, "the trained adapter has no such module")
		}
	}
	return nil
}

func (r *reader) startName() string {
	if r.config.KaSA {
		return "kasa"
	}
	return r.config.Init
}

// StartError says that an adapter belongs to a changed base and that the change
// is not known.
type StartError struct{ Init string }

func (e *StartError) Error() string {
	if e.Init == "loftq" {
		return "init_lora_weights is \"loftq\": the adapter belongs to the quantized base that LoftQ made, not to the original"
	}
	return fmt.Sprintf("init_lora_weights is %q: the adapter belongs to a changed base, and merging it into the original would count its start twice", e.Init)
}

// Hint tells the way out.
func (e *StartError) Hint() string {
	if e.Init == "loftq" {
		return "merge it into the dequantized base that was saved with it, with init_lora_weights set to true"
	}
	return "give the adapter as saved before training with --init-adapter, or convert it with PEFT's path_initial_model_for_weight_conversion"
}
