package cli

import (
	"errors"
	"slices"

	"github.com/loratool/loratool/convert"
	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/plan"
)

// This file quantizes a model folder to GGUF in one pass: adapters are merged, the result
// becomes the GGUF file in F32 that 'convert' would write, and that is quantized - each seen
// through the next, tensor by tensor, as it is read. So the output is that of the three
// commands, without the files between them.

// folderAsFile is a folder, with adapters or without, seen as a GGUF file in F32.
type folderAsFile struct {
	file      *checkpoint.Model
	inputs    []plan.Input
	decisions []plan.Decision
	memory    int64 // that computing it holds
	views     []*engine.View
}

// checkFolderFlags refuses what is for one kind of input only.
func (f *quantizeFlags) checkFolderFlags(base *checkpoint.Model) error {
	switch {
	case base.GGUF() == nil:
		return nil
	case len(f.adapters) > 0:
		return usageHint("loratool merge --base "+f.model+" --adapter "+f.adapters[0]+" --type "+f.kind+" -o "+f.output,
			"--adapter is for a folder: a GGUF model is merged into and quantized by 'loratool merge'")
	case f.name != "":
		return usagef("--name is for a folder that becomes GGUF; a GGUF model keeps its name")
	case f.pre != "":
		return usagef("--pre is for a folder that becomes GGUF; a GGUF model keeps its pre-tokenizer")
	}
	return nil
}

// openForGGUF opens a model and its adapters; a folder is replaced by the file that it is
// seen as.
func (a *App) openForGGUF(f *quantizeFlags, o engine.Options) (in *mergeInputs, seen *folderAsFile, err error) {
	in, err = a.openInputs(&mergeFlags{base: f.model, adapters: f.adapters})
	if err != nil {
		return nil, nil, err
	}
	in.page = &f.page
	if err = f.checkFolderFlags(in.base); err == nil && in.base.GGUF() == nil {
		seen, err = seeFolderAsFile(in, f, o)
	}
	if err != nil {
		in.close()
		return nil, nil, err
	}
	if seen == nil {
		return in, new(folderAsFile), nil
	}
	in.base = seen.file
	return in, seen, nil
}

// explain puts what was decided on the way before what a plan decided.
func (s *folderAsFile) explain(p *plan.Plan) {
	p.Decisions = append(slices.Clone(s.decisions), p.Decisions...)
}

// seeFolderAsFile merges and converts without writing. The inputs have the folder and its
// adapters open.
func seeFolderAsFile(in *mergeInputs, f *quantizeFlags, o engine.Options) (*folderAsFile, error) {
	source, done := in.base, new(folderAsFile)
	if source.IsAdapter() {
		return nil, &checkpoint.InputError{Path: source.Path, Err: errors.New("it is an adapter, not a model; --adapter merges it into one")}
	}
	if len(in.sources) > 0 {
		o.Memory /= 2 // for each of the two views
		merged, err := done.seeMerge(in, f, o)
		if err != nil {
			return nil, err
		}
		source = merged
	}
	c, err := convert.Plan(source, convert.Options{Output: "model.gguf", DType: tensor.F32, Name: f.name, PreTokenizer: f.pre})
	if option, ok := errors.AsType[*convert.OptionError](err); ok {
		return nil, usagef("--%w", option)
	} else if err != nil {
		return nil, err
	}
	view, err := viewOf(c.Plan, layoutSpecs(c.Layout), []checkpoint.Checkpoint{c.View}, o)
	if err != nil {
		return nil, err
	}
	if done.file, err = in.base.AsGGUF(c.Layout.Files[0].GGUF(), view); err != nil {
		return nil, err
	}
	done.memory, done.views = done.memory+view.Memory(), append(done.views, view)
	if done.inputs == nil {
		done.inputs = c.Plan.Inputs
	}
	for _, d := range c.Plan.Decisions {
		if d.Code != "gguf-type" { // of a file that is not written
			done.decisions = append(done.decisions, d)
		}
	}
	return done, nil
}

// seeMerge returns the merge of the inputs in F32.
func (s *folderAsFile) seeMerge(in *mergeInputs, f *quantizeFlags, o engine.Options) (*checkpoint.Model, error) {
	m, err := merge.Plan(in.base, in.sources, merge.Options{Output: "merged", DType: tensor.F32, NoProvenance: f.noProvenance, Version: buildVersion()})
	if err != nil {
		return nil, err
	}
	view, err := viewOf(m.Plan, layoutSpecs(m.Layout), m.Inputs, o)
	if err != nil {
		return nil, err
	}
	s.inputs, s.decisions, s.memory = m.Plan.Inputs, m.Plan.Decisions, view.Memory()
	s.views = []*engine.View{view}
	config, err := strictjson.ParsePythonObject(m.Config.Encode())
	if err != nil {
		return nil, err
	}
	return in.base.As(view).WithFiles(config, m.Sidecars), nil
}
