package main

import (
	"context"
	"os"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/plan"
)

// copyModel copies a model through the engine, every tensor a step without
// stages: what the pipeline of reading and writing costs when nothing is
// computed.
func copyModel(ctx context.Context, from, to string, direct bool) error {
	m, err := checkpoint.Open(from, hfrepo.Cache{})
	if err != nil {
		return err
	}
	defer m.Close()
	p := &plan.Plan{Unhashed: true}
	for _, spec := range m.Specs() {
		p.Steps = append(p.Steps, plan.Step{Read: plan.Whole(0, spec), Write: plan.Placement{Tensor: spec.Name, DType: spec.DType}})
	}
	layout, err := checkpoint.NewLayout(to, m.Specs(), nil, checkpoint.Options{})
	if err != nil {
		return err
	}
	sink, err := checkpoint.Create(fsatomic.OS{Direct: direct}, layout, false)
	if err != nil {
		return err
	}
	if _, err := engine.Run(ctx, p, []engine.Source{m}, copySink{sink}, engine.Options{}); err != nil {
		_ = sink.Abort() // the first error counts
		return err
	}
	return sink.Commit(nil)
}

type copySink struct{ *checkpoint.Sink }

func (s copySink) WriteAt(_ int, name string, p []byte, off int64) error {
	return s.Sink.WriteAt(name, p, off)
}

// engineCopy returns a command line that copies the base through the engine.
func (w *workplace) engineCopy(flags ...string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return append([]string{self, "--copy", w.base, "--dir", w.output()}, flags...), nil
}
