package convert

import (
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/plan"
)

// Tensors are the tensors that a model has as GGUF, without a file that they are for.
type Tensors struct {
	Plan         *plan.Plan
	Specs        []tensor.Spec // that the plan makes, all F32
	View         *View         // what the steps read, the plan's only input
	Architecture string        // by llama.cpp's name
}

// PlanTensors decides what the tensors of a model are in GGUF, of which the keys and the
// tokenizer are not made: none need be there. All are F32, which the types of models
// fit into but F64, so that what any file holds can be held against them. A norm of a
// Gemma model in F16 is rounded to F16 as in [Plan]: no file has other ones.
//
// Embeddings that may have rows of no token, those of Gemma 3, end after the given number
// of tokens; 0 keeps all rows. Tensors that the model lacks are not missed, but experts
// of a stack.
func PlanTensors(source *checkpoint.Model, tokens int64) (*Tensors, error) {
	if err := source.RefuseGGUF("a conversion from"); err != nil {
		return nil, err
	}
	p := &planner{
		source: source, config: hfrepo.NewConfig(source.Config).Clone(), options: Options{DType: tensor.F32},
		plan: &plan.Plan{Unhashed: true},
	}
	p.addInput()
	g := &ggufPlanner{planner: p, keys: new(gguf.Metadata), tokens: tokens, stacks: make(map[int]map[string]string)}
	for _, step := range []func() error{g.open, g.chooseType, g.addExtras, g.addTensors, g.checkStacks} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	t := &Tensors{Plan: p.plan, View: g.view, Architecture: g.family.Name}
	for _, s := range g.view.specs {
		s.DType = tensor.F32
		t.Specs = append(t.Specs, s)
	}
	return t, nil
}
