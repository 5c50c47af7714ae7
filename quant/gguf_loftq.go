package quant

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
)

// GGUFRepair is a quantization of a GGUF model with an adapter that makes up for it, a
// GGUF file that llama.cpp applies. The types are those of the plain quantization, the
// numbers are not: the two belong together.
type GGUFRepair struct {
	*GGUF
	AdapterPlan   *plan.Plan
	AdapterLayout *checkpoint.Layout
	Adapter       checkpoint.Checkpoint // the only input of AdapterPlan

	base    *checkpoint.Model
	options GGUFOptions
	pairs   []*pairing
	alone   []string // modules that could have a pair
	without []string // tensors that can't
	types   map[*target]mixed
	store   *Store
}

// mixed is what a weight becomes.
type mixed struct {
	kind    block.GGML
	weights func() ([]float32, error) // nil for none
}

// PlanGGUFLoftQ decides as [PlanGGUF] does, and which weights get a pair: the matrices of
// layers that llama.cpp multiplies with an adapter, stacks of experts excepted. What
// [GGUFRepair.Tasks] find is needed to run the two plans; see [GGUFRepair.Use].
func PlanGGUFLoftQ(base *checkpoint.Model, o GGUFOptions) (*GGUFRepair, error) {
	if o.LoftQ == nil {
		return nil, &OptionError{"loftq", "there are no options of it"}
	}
	if err := o.LoftQ.checkGGUF(); err != nil {
		return nil, err
	}
	l := *o.LoftQ
	l.Alpha = float64(float32(l.Alpha)) // as the file will say
	o.LoftQ = &l
	r := &GGUFRepair{base: base, options: o, types: make(map[*target]mixed)}
	var err error
	if r.GGUF, err = PlanGGUF(base, o); err != nil {
		return r, err
	}
	if err := r.choosePairs(); err != nil {
		return nil, err
	}
	return r, r.place()
}

// checkGGUF refuses what a GGUF adapter can't be.
func (l *LoftQ) checkGGUF() error {
	switch {
	case l.Output == "":
		return &OptionError{"adapter-out", "it is missing: where does the adapter go?"}
	case !strings.HasSuffix(l.Output, ".gguf"):
		return &OptionError{"adapter-out", fmt.Sprintf("the adapter of a GGUF model is a file, which %q is not: it does not end in .gguf", l.Output)}
	case l.RSLoRA:
		return &OptionError{"rslora", "llama.cpp divides alpha by the rank: --alpha sets any scale"}
	case len(l.Bits) > 0:
		return &OptionError{"bits", "widths by layer are for the nf and uniform types; of GGUF --tensor-type sets types by name"}
	case !(l.Alpha >= 0 && l.Alpha <= maxAlpha):
		return &OptionError{"alpha", fmt.Sprintf("%v is not between 0 and %g", l.Alpha, float64(maxAlpha))}
	}
	rest := loftq.Options{Rank: l.Rank, Iterations: l.Iterations, Order: l.Order, Scale: l.scale()}
	return asOption(rest.Validate(1))
}

// choosePairs goes through what is quantized.
func (r *GGUFRepair) choosePairs() error {
	l := r.options.LoftQ
	used := make(map[string]bool) // names that were given
	covers := func(names []string, module string) (any bool) {
		for _, name := range names {
			if coversModule(name, module) {
				used[name], any = true, true
			}
		}
		return any
	}
	for _, d := range r.Mix.Decisions {
		if !d.Quantize() {
			continue
		}
		s, _ := r.base.Lookup(d.Name)
		s.Shape = gguf.TrimShape(s.Shape)
		module, isWeight := strings.CutSuffix(d.Name, weightSuffix)
		if !isWeight || len(s.Shape) != 2 || !adapter.HasGGUFProduct(module) {
			r.without = append(r.without, d.Name)
			continue
		}
		// Both are asked, so that each name is known to be of use.
		targeted, excluded := covers(l.Target, module), covers(l.Exclude, module)
		if len(l.Target) > 0 && !targeted || excluded {
			r.alone = append(r.alone, module)
			continue
		}
		if err := r.addPair(d.Name, module, s, block.GGML(d.To), d.Weights); err != nil {
			return err
		}
	}
	for option, names := range map[string][]string{"target": l.Target, "exclude": l.Exclude} {
		for _, name := range names {
			if !used[name] {
				return &OptionError{option, fmt.Sprintf("%q names no weight that is quantized and could get a pair", name)}
			}
		}
	}
	if len(r.pairs) == 0 {
		return &OptionError{"loftq", "no weight is quantized that could get a pair"}
	}
	return nil
}

func (r *GGUFRepair) addPair(name, module string, s tensor.Spec, kind block.GGML, weighted bool) error {
	t := &target{spec: s, module: module, shape: s.Shape, dtype: s.DType}
	row, ok := kind.RowBytes(s.Shape[1])
	if !ok {
		return &checkpoint.InputError{Path: r.base.Path, Err: fmt.Errorf("tensor %q: rows of %d are not whole blocks of %s", name, s.Shape[1], kind)}
	}
	t.bytes = row * s.Shape[0]
	m := mixed{kind: kind}
	if weighted && kind.Weighted() {
		m.weights = func() ([]float32, error) { return r.options.Matrix.Weights(name) }
	}
	r.types[t] = m
	t.pair = &pairing{target: t, index: len(r.pairs), name: module, rank: int64(r.options.LoftQ.Rank)}
	r.pairs = append(r.pairs, t.pair)
	if moments := r.options.LoftQ.Moments; moments != nil {
		var err error
		t.pair.moments, err = moments.Of(module, s.Shape[1])
		return err
	}
	return nil
}

// place plans both outputs: the quantization once more, of weights less their shifts.
func (r *GGUFRepair) place() error {
	o := r.options
	o.Changed = &shiftedWeights{r}
	if !o.NoProvenance {
		o.Keys = append(slices.Clone(o.Keys), gguf.Pair{Key: provenanceKey, Value: gguf.ValueOf(r.provenance(nil))})
	}
	var err error
	if r.GGUF, err = PlanGGUF(r.base, o); err != nil {
		return err
	}
	r.Plan.Unhashed = o.NoProvenance
	if m := o.LoftQ.Moments; m != nil {
		r.Plan.Inputs = append(r.Plan.Inputs, m.Input())
	}
	decide := func(code, message string, names []string) {
		if len(names) > 0 {
			r.Plan.Decisions = append(r.Plan.Decisions, plan.Decision{Code: code, Message: message, Tensors: names})
		}
	}
	decide("without-pair", "quantized without a pair: --target and --exclude leave them out", r.alone)
	decide("no-pair", "quantized without a pair: embeddings, the output matrix, stacks of experts, and what llama.cpp applies no adapter to", r.without)
	return r.placeAdapter()
}

func (r *GGUFRepair) placeAdapter() error {
	all := newPairs(r.pairs, "", weightSuffix+adapter.GGUFSuffixA, weightSuffix+adapter.GGUFSuffixB,
		func(p *pairing) (*finding, error) { return r.store.find(p) })
	r.Adapter, r.AdapterPlan = all, all.plan()
	architecture, err := r.base.GGUF().Metadata().Text("general.architecture")
	if err != nil {
		return &checkpoint.InputError{Path: r.base.Path, Err: err}
	}
	keys := adapter.GGUFKeys(architecture, float32(r.options.LoftQ.alpha()))
	if !r.options.NoProvenance {
		keys.Set(provenanceKey, gguf.ValueOf(r.provenance(nil)))
	}
	var specs []gguf.Spec
	for _, s := range all.specs {
		specs = append(specs, gguf.Spec{Name: s.Name, Type: gguf.F32, Shape: s.Shape})
	}
	r.AdapterLayout, err = checkpoint.NewGGUFLayout(r.options.LoftQ.Output, specs, keys, checkpoint.GGUFOptions{})
	return err
}

// provenance is what both outputs say of how they were made. Hashes are those of the
// inputs, by path; nil leaves placeholders of the same length.
func (r *GGUFRepair) provenance(hashes map[string]string) string {
	options := r.options.LoftQ.describe()
	options.Set("type", strictjson.NewString(r.options.Mix.Type.String()))
	root := strictjson.NewObject()
	root.Set("tool", strictjson.NewString("loratool"))
	root.Set("version", strictjson.NewString(r.options.Version))
	root.Set("command", strictjson.NewString("quantize"))
	root.Set("base", strictjson.NewString(filepath.Base(r.options.Output)))
	root.Set("adapter", strictjson.NewString(filepath.Base(r.options.LoftQ.Output)))
	root.Set("options", options.Value())
	ins := r.Plan.Inputs
	if m := r.options.LoftQ.Moments; m != nil && !slices.ContainsFunc(ins, func(in plan.Input) bool { return in.Role == "stats" }) {
		ins = append(slices.Clone(ins), m.Input())
	}
	inputs := make([]strictjson.Value, len(ins))
	for i, in := range ins {
		inputs[i] = in.Provenance(hashes).Value()
	}
	root.Set("inputs", strictjson.NewArray(inputs...))
	return string(root.Encode(""))
}

// Outputs returns the two outputs.
func (r *GGUFRepair) Outputs() (quantized, adapter Output) {
	return Output{r.Plan, r.Layout, r.View}, Output{r.AdapterPlan, r.AdapterLayout, r.Adapter}
}

// SetHashes returns the keys of the two outputs that are known only now.
func (r *GGUFRepair) SetHashes(hashes map[string]string) (quantized, adapter map[string]string) {
	if r.options.NoProvenance {
		return nil, nil
	}
	final := map[string]string{provenanceKey: r.provenance(hashes)}
	return final, final
}

// Memory bounds what reading the view takes in jobs goroutines: beside its own, of the
// two weights that are being read what was found of each, its bytes and its numbers,
// and in each goroutine a band of rows.
func (r *GGUFRepair) Memory(jobs int) int64 {
	var found, band int64
	for _, p := range r.pairs {
		out, in := p.target.shape[0], p.target.shape[1]
		found = max(found, 4*2*4*p.rank*(out+in))
		band = max(band, segmentBytes*(in+segmentElements(p.target)))
	}
	return r.View.Memory(jobs) + 2*found + int64(jobs)*band
}

// NewStore makes the work folder, see [Repair.NewStore].
func (r *GGUFRepair) NewStore(fsys fsatomic.FS, resume bool) (*Store, error) {
	return newStore(fsys, r.options.LoftQ, r.key(), resume)
}

// key is the SHA-256 of everything that the pairs depend on, see [Repair.key].
func (r *GGUFRepair) key() string {
	h := sha256.New()
	fmt.Fprintf(h, "loratool loftq gguf 1\n%s\n%s\n", kernel.Level(), r.base.Identity())
	if m := r.options.LoftQ.Moments; m != nil {
		fmt.Fprintln(h, m.Identity())
	}
	fmt.Fprintln(h, r.options.MatrixIdentity)
	for _, p := range r.pairs {
		o := r.options.LoftQ.solverOptions(p, 1)
		o.Moments = nil // are those of the file
		m := r.types[p.target]
		fmt.Fprintf(h, "%q %s %v %s %v %+v\n", p.target.spec.Name, p.target.spec.DType, p.target.shape, m.kind, m.weights != nil, o)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Tasks returns the alternations, see [Repair.Tasks].
func (r *GGUFRepair) Tasks(store *Store) []plan.Task {
	tasks := make([]plan.Task, len(r.pairs))
	for i, p := range r.pairs {
		t := p.target
		tasks[i] = plan.Task{
			Name: t.spec.Name, Reads: t.spec.Size(),
			Scratch: loftq.Scratch(int(t.shape[0]), int(t.shape[1]), r.options.LoftQ.solverOptions(p, 1)) +
				2*4*t.spec.NumElements() + segmentBytes*segmentElements(t),
			Do: func(ctx context.Context, threads int) error {
				if _, err := store.find(p); err == nil && store.Resumed() {
					return nil
				}
				f, err := r.solve(ctx, p, threads)
				if err != nil {
					return err
				}
				return store.keep(p, f)
			},
		}
	}
	return tasks
}

func (r *GGUFRepair) solve(ctx context.Context, p *pairing, threads int) (*finding, error) {
	t, m := p.target, r.types[p.target]
	v := &View{source: r.base, path: r.base.Path}
	w, err := v.readWeight(t)
	if err != nil {
		return nil, err
	}
	q := loftq.GGML{Type: m.kind}
	if m.weights != nil {
		if q.Weights, err = m.weights(); err != nil {
			return nil, err
		}
	}
	s, err := loftq.Solve(ctx, w, int(t.shape[0]), int(t.shape[1]), q, r.options.LoftQ.solverOptions(p, threads))
	if err != nil {
		return nil, inTensor(r.base.Path, t, err)
	}
	return p.finding(s, w), nil
}

// Use makes what the tasks have found that of both outputs. It must come before either
// plan is run.
func (r *GGUFRepair) Use(store *Store) error {
	r.store = store
	figures, err := r.Repaired()
	if err == nil {
		decidePairs(r.AdapterPlan, figures)
	}
	return err
}

// Repaired returns what became of every weight with a pair, in order.
func (r *GGUFRepair) Repaired() ([]Repaired, error) {
	return r.store.figures(r.pairs, r.options.LoftQ.scale(), func(t *target) float64 {
		return 8 * float64(t.bytes) / float64(t.spec.NumElements())
	})
}

// shiftedWeights are the weights with pairs as the quantizer gets them, in float32.
type shiftedWeights struct{ repair *GGUFRepair }

var _ checkpoint.Checkpoint = (*shiftedWeights)(nil)

func (s *shiftedWeights) Specs() []tensor.Spec {
	var specs []tensor.Spec
	for _, p := range s.repair.pairs {
		specs = append(specs, tensor.Spec{Name: p.target.spec.Name, DType: tensor.F32, Shape: p.target.shape})
	}
	return specs
}

func (s *shiftedWeights) Open(name string) (io.ReaderAt, error) {
	for _, p := range s.repair.pairs {
		if p.target.spec.Name != name {
			continue
		}
		src, err := s.repair.base.Open(name)
		if err != nil {
			return nil, err
		}
		f, err := s.repair.store.find(p)
		if err != nil {
			return nil, err
		}
		r := &shiftedReader{source: newSource(src, p.target)}
		r.source.shift = f.shift
		return r, nil
	}
	return nil, fmt.Errorf("tensor %q gets no pair", name)
}

// shiftedReader computes the bytes of a weight less its shift.
type shiftedReader struct{ source source }

func (r *shiftedReader) ReadAt(p []byte, off int64) (int, error) {
	const width = 4
	size := width * r.source.target.shape[0] * r.source.target.shape[1]
	switch {
	case off < 0:
		return 0, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: size}
	case off >= size:
		return 0, io.EOF
	}
	n := min(int64(len(p)), size-off)
	first, last := off/width, ceilDiv(off+n, width)
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	x, err := r.source.values(b, first, int(last-first))
	if err != nil {
		return 0, err
	}
	copy(p[:n], encodeFloats(x)[off-first*width:])
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
