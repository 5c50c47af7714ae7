package extract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// Resize gives the pairs of a LoRA adapter other ranks. It never forms a product:
// with s·B·A of rank r, the factors are brought to orthonormal ones and the r x r
// core between them is decomposed (linalg.SVDOfProduct). The product keeps its scale
// exactly; what is no pair is copied.
type Resize struct {
	from  *adapter.Adapter
	opts  Options
	pairs []*resized
}

// resized is one pair of factors.
type resized struct {
	*item
	module      *adapter.Module
	a, b        tensor.Spec
	bias        *tensor.Spec // lora_B.bias
	patternName string
	scale       float64  // of the product, as the adapter says
	mirror      *resized // the embedding whose pair this one is once more, transposed
	solved      []linalg.SVD
	spectrum    Spectrum
	choice      Choice
	needed      int64 // the rank without [Options.Plain]
}

// WeightError says that what an adapter does depends on the base, so that its
// factors alone do not tell.
type WeightError struct{ Adapter, Reason string }

func (e *WeightError) Error() string { return e.Adapter + ": " + e.Reason }

// Hint tells the way out.
func (e *WeightError) Hint() string {
	return "--base MODEL: the change of its weights is then decomposed, as extract does"
}

// OpenResize reads the pairs of an adapter. A [*WeightError] says that only the
// true difference of weights can be resized.
func OpenResize(a *adapter.Adapter, o Options) (*Resize, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	r := &Resize{from: a, opts: o}
	c := a.Config
	refuse := func(reason string) error { return &WeightError{a.Source.Path, reason} }
	switch {
	case c.Type != "LORA":
		return nil, refuse(fmt.Sprintf("a %s adapter has no pairs of factors", c.Type))
	case c.DoRA:
		return nil, refuse("use_dora is set: its magnitudes depend on the weights of the base")
	case c.KaSA || c.Init != "":
		return nil, refuse("it was made by changing the base: its factors are not the change")
	}
	for _, m := range a.Modules {
		if err := r.addModule(m); err != nil {
			return nil, err
		}
	}
	if err := r.checkPlain(); err != nil {
		return nil, err
	}
	r.findMirrors()
	if len(r.pairs) == 0 {
		return nil, &checkpoint.InputError{Path: a.Source.Path, Err: errors.New("it holds no pair of factors")}
	}
	return r, nil
}

// addModule reads the pair of a module; trained rows are copied with all else.
func (r *Resize) addModule(m *adapter.Module) error {
	a, okA := m.Part("lora_A")
	b, okB := m.Part("lora_B")
	role := Linear
	if e, ok := m.Part("lora_embedding_A"); ok {
		a, okA, role = e, true, Embedding
		b, okB = m.Part("lora_embedding_B")
	}
	if !okA && !okB {
		return nil
	}
	if !okA || !okB {
		return r.from.Mismatch(anyOf(m), "its counterpart is missing")
	}
	p := &resized{module: m, a: a, b: b, patternName: m.Name}
	if bias, ok := m.Part("lora_B.bias"); ok {
		p.bias = &bias
	}
	if len(a.Shape) < 2 || len(a.Shape) != len(b.Shape) || !a.DType.IsFloat() || !b.DType.IsFloat() || b.Cols() != a.Rows() {
		return r.from.Mismatch(a.Name, "factors of shapes %v and %v make no product", b.Shape, a.Shape)
	}
	p.item = &item{module: m.Name, param: "weight", role: role, out: b.Rows(), in: a.Cols(), blocks: 1, solve: true, shape: tensor.Shape{b.Rows(), a.Cols()}}
	if len(a.Shape) > 2 {
		p.role = Conv
	}
	rank := a.Rows()
	if param, ok := r.parameter(m); ok {
		p.param, p.role, p.patternName = param, Experts, m.Name+"."+param
	}
	want := r.from.Config.RankOf(p.patternName)
	if p.role == Experts && want > 0 && rank%want == 0 {
		p.blocks = rank / want
		rank = want
	}
	if rank != want {
		return r.from.Mismatch(a.Name, "its rank is %d, the config says %d for %q", rank, want, p.patternName)
	}
	p.parts = []part{{pair: pair{name: a.Name, base: a, tuned: b}}}
	p.scale = r.from.Config.ScaleOf(p.patternName)
	r.pairs = append(r.pairs, p)
	return nil
}

// checkPlain refuses a plain adapter of what holds more than pairs of linear layers:
// how much would be lost is not known without the models.
func (r *Resize) checkPlain() error {
	c := r.from.Config
	if !r.opts.Plain {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return &checkpoint.InputError{Path: r.from.Source.Path, Err: fmt.Errorf("a plain adapter holds nothing but pairs of linear layers: "+format, args...)}
	}
	for _, p := range r.pairs {
		if p.role != Linear {
			return refuse("the pair of %q is of another kind (%s)", p.patternName, p.role)
		}
	}
	for _, spec := range r.from.Source.Specs() {
		if !r.isFactor(spec.Name) {
			return refuse("tensor %q is none", spec.Name)
		}
	}
	switch {
	case len(c.ModulesToSave) > 0:
		return refuse("modules_to_save is set")
	case c.TokenIndices != nil:
		return refuse("trainable_token_indices is set")
	case c.LoRABias || c.Bias != "" && c.Bias != "none":
		return refuse("biases are part of it")
	}
	return nil
}

// findMirrors finds the head's copies of an embedding's factors, which
// ensure_weight_tying leaves in the file.
func (r *Resize) findMirrors() {
	if !r.from.Config.EnsureTied {
		return
	}
	for _, head := range r.pairs {
		for _, e := range r.pairs {
			if e.role == Embedding && head.role == Linear && head.out == e.in && head.in == e.out {
				head.mirror = e
			}
		}
	}
}

func (r *Resize) mirrored(p *resized) bool {
	return slices.ContainsFunc(r.pairs, func(other *resized) bool { return other.mirror == p })
}

// checkMirror compares the factors of a head with those they are said to be.
func (r *Resize) checkMirror(p *resized) error {
	for _, pair := range [][2]tensor.Spec{{p.a, p.mirror.b}, {p.b, p.mirror.a}} {
		mine, theirs := make([]float64, pair[0].NumElements()), make([]float64, pair[1].NumElements())
		if len(mine) != len(theirs) {
			return r.from.Mismatch(pair[0].Name, "ensure_weight_tying is set, but it is not the transpose of %q", pair[1].Name)
		}
		if err := readAll(r.from.Source, pair[0], mine); err != nil {
			return err
		}
		if err := readAll(r.from.Source, pair[1], theirs); err != nil {
			return err
		}
		rows, cols := int(pair[0].Rows()), int(pair[0].Cols())
		for i := range rows {
			for j := range cols {
				if mine[i*cols+j] != theirs[j*rows+i] {
					return r.from.Mismatch(pair[0].Name, "ensure_weight_tying is set, but it is not the transpose of %q", pair[1].Name)
				}
			}
		}
	}
	return nil
}

// parameter finds the name of a parameter that PEFT adapts by its name: wrappers of
// one module are nested in the order of registration, the first innermost.
func (r *Resize) parameter(m *adapter.Module) (string, bool) {
	var params []string
	for _, target := range r.from.Config.TargetParameters {
		module, param := splitName(target)
		if adapter.MatchName(module, m.Name) || module == "" {
			params = append(params, param)
		}
	}
	order := func(param string) int {
		if i := slices.Index(arch.RegistrationOrder, param); i >= 0 {
			return i
		}
		return len(arch.RegistrationOrder)
	}
	slices.SortStableFunc(params, func(a, b string) int { return order(a) - order(b) })
	wrappers := 0
	for _, other := range r.from.Modules {
		if other.Name == m.Name {
			wrappers++
		}
	}
	if len(params) == 0 || wrappers != len(params) || m.Depth >= len(params) {
		return "", false
	}
	return params[len(params)-1-m.Depth], true
}

func anyOf(m *adapter.Module) string {
	first := ""
	for _, s := range m.Parts {
		if first == "" || s.Name < first {
			first = s.Name
		}
	}
	return first
}

// Tasks returns the decompositions, one task for each pair. Their results stay in
// memory: they are no larger than the adapter.
func (r *Resize) Tasks() []plan.Task {
	var tasks []plan.Task
	for _, p := range r.pairs {
		size := p.a.NumElements() + p.b.NumElements()
		tasks = append(tasks, plan.Task{
			Name: p.a.Name, Reads: p.a.Size() + p.b.Size(),
			// Factors in float64 and float32, orthonormal ones, vectors.
			Scratch: 32 * size,
			Do:      func(_ context.Context, threads int) error { return r.solve(p, threads) },
		})
	}
	return tasks
}

// solve decomposes the product of one pair, matrix by matrix of a stack.
func (r *Resize) solve(p *resized, threads int) error {
	if p.mirror != nil {
		return r.checkMirror(p)
	}
	a, b := make([]float64, p.a.NumElements()), make([]float64, p.b.NumElements())
	if err := readAll(r.from.Source, p.a, a); err != nil {
		return err
	}
	if err := readAll(r.from.Source, p.b, b); err != nil {
		return err
	}
	n, rank := int(p.blocks), int(p.a.Rows()/p.blocks)
	out, in := int(p.out), int(p.in)
	for e := range n {
		left, right := linalg.NewMatrix(out, rank, nil), linalg.NewMatrix(rank, in, nil)
		for i, v := range a[e*rank*in : (e+1)*rank*in] {
			right.Data[i] = float32(v)
		}
		for o := range out {
			for k := range rank {
				left.Data[o*rank+k] = float32(b[o*rank*n+k*n+e])
			}
		}
		svd, err := linalg.SVDOfProduct(left, right, p.scale, threads)
		var notFinite *linalg.NotFiniteError
		if errors.As(err, &notFinite) {
			return r.from.Mismatch(p.a.Name, "a number of the pair is not finite: %v", err)
		}
		if err != nil {
			return fmt.Errorf("decomposing the product: %w", err)
		}
		p.solved = append(p.solved, svd)
	}
	p.spectrum = p.stack()
	return nil
}

// stack joins the spectra of a stack of products.
func (p *resized) stack() Spectrum {
	f := finding{}
	for _, d := range p.solved {
		f.spectra = append(f.spectra, spectrumOf(d))
	}
	s := p.stackOf(f)
	s.Limit = int64(len(s.Squares)) // a product has no more directions
	return s
}

// Plan chooses the ranks and places every byte of the resized adapter. All tasks
// must have run.
func (r *Resize) Plan() (*Extraction, error) {
	over := int64(0)
	for {
		x, err := r.plan(over)
		if err != nil || r.opts.Rule.Size == 0 {
			return x, err
		}
		size := x.Layout.Files[0].Size()
		if size <= r.opts.Rule.Size {
			return x, nil
		}
		over += size - r.opts.Rule.Size
	}
}

func (r *Resize) plan(over int64) (*Extraction, error) {
	if err := r.chooseRanks(over); err != nil {
		return nil, err
	}
	x := &Extraction{Plan: &plan.Plan{Unhashed: r.opts.NoProvenance}, opts: r.opts, command: "resize"}
	x.models = []*checkpoint.Model{r.from.Source}
	in := plan.Input{Role: "adapter", Name: r.from.Source.Name, Path: r.from.Source.Path, Note: r.from.Source.Commit, Weight: 1}
	for _, f := range r.from.Source.Files() {
		in.Files = append(in.Files, plan.File{Name: f.Name, Path: f.Path, Size: f.Size})
	}
	x.Plan.Inputs = []plan.Input{in}
	specs := r.steps(x)
	var err error
	if x.config, err = r.config(); err != nil {
		return nil, err
	}
	x.Certificate = r.certificate()
	x.Certificate.explain(x)
	if err := x.decideConsumers(); err != nil {
		return nil, err
	}
	x.Layout, err = r.layout(x, specs)
	return x, err
}

// chooseRanks applies the rule. Under a budget every pair keeps at least one
// direction, as the config goes on to name its module.
func (r *Resize) chooseRanks(over int64) error {
	var spectra []Spectrum
	var fixedBytes, fixedParams, cost int64
	for _, p := range r.pairs {
		s := p.spectrum
		if s.Cost = p.cost(); p.mirror != nil {
			s.Cost = 0 // it is paid with the embedding
		} else if r.mirrored(p) {
			s.Cost *= 2
		}
		if r.opts.Rule.MaxRank > 0 && int64(len(s.Squares)) > r.opts.Rule.MaxRank {
			s.Rest = s.residual(r.opts.Rule.MaxRank)
			s.Squares = s.Squares[:r.opts.Rule.MaxRank]
		}
		spectra = append(spectra, s)
		cost += s.Cost
	}
	for _, spec := range r.from.Source.Specs() {
		if !r.isFactor(spec.Name) {
			fixedBytes, fixedParams = fixedBytes+spec.Size(), fixedParams+spec.NumElements()
		}
	}
	rule := r.opts.Rule
	budget := rule.Params - fixedParams
	if rule.Size > 0 {
		budget = (rule.Size - over - fixedBytes) * 8 / r.opts.factorType().Bits()
	}
	if rule.budgeted() && budget < cost {
		return &fsatomic.RefusedError{Path: r.opts.Output, Reason: fmt.Sprintf(
			"one direction of every module and what is copied take %d parameters, more than the budget", cost+fixedParams)}
	}
	shared := rule.budgeted() && !r.opts.Plain
	if shared {
		for i := range spectra {
			if len(spectra[i].Squares) > 0 {
				spectra[i].Squares = spectra[i].Squares[1:]
			}
			spectra[i].Limit--
		}
		budget -= cost
	}
	choices, needed := r.opts.ranks(spectra, budget)
	for i, p := range r.pairs {
		p.choice, p.needed = choices[i], needed[i]
		if shared {
			p.choice.Rank++
			p.needed++
		}
	}
	for _, p := range r.pairs {
		if p.mirror != nil {
			p.choice, p.needed = p.mirror.choice, p.mirror.needed
		}
	}
	return nil
}

// isFactor reports whether a tensor is A or B of a pair.
func (r *Resize) isFactor(name string) bool {
	return slices.ContainsFunc(r.pairs, func(p *resized) bool { return p.a.Name == name || p.b.Name == name })
}

// newScale is the factor that the new config gives the product of a pair.
func (r *Resize) newScale(p *resized) float64 {
	if r.opts.Alpha == 0 {
		return 1
	}
	return r.opts.Alpha / float64(p.choice.Rank)
}

// steps plans every tensor of the adapter, in its order.
func (r *Resize) steps(x *Extraction) []tensor.Spec {
	made := new(made)
	byName := make(map[string]*resized)
	for _, p := range r.pairs {
		byName[p.a.Name], byName[p.b.Name] = p, p
		if p.bias != nil {
			byName[p.bias.Name] = p
		}
	}
	var specs []tensor.Spec
	const source, computedInput = 0, 1
	for _, spec := range r.from.Source.Specs() {
		p := byName[spec.Name]
		if p == nil {
			x.Plan.Steps = append(x.Plan.Steps, plan.Step{Read: plan.Whole(source, spec), Write: plan.Placement{Tensor: spec.Name, DType: spec.DType}})
			specs = append(specs, spec)
			continue
		}
		rank, in := p.choice.Rank, spec
		in.DType = tensor.F64
		in.Shape = slices.Clone(spec.Shape)
		switch spec.Name {
		case p.a.Name:
			in.Shape[0] = p.blocks * rank
			made.add(in, r.factor(p, true))
		case p.b.Name:
			in.Shape[1] = p.blocks * rank
			made.add(in, r.factor(p, false))
		default:
			made.add(in, r.scaled(spec, p.scale/r.newScale(p)))
		}
		out := in
		out.DType = r.opts.factorType()
		x.Plan.Steps = append(x.Plan.Steps, plan.Step{Read: plan.Whole(computedInput, in), Write: plan.Placement{Tensor: spec.Name, DType: out.DType}})
		specs = append(specs, out)
	}
	x.Inputs = []checkpoint.Checkpoint{r.from.Source, made}
	return specs
}

// factor gives A or B of a pair. That of a mirror is the other one of its
// embedding, transposed.
func (r *Resize) factor(p *resized, isA bool) opener {
	rank := p.choice.Rank
	if e := p.mirror; e != nil {
		return transposedOf(r.factor(e, !isA), p.rowsOf(isA, rank), p.colsOf(isA, rank))
	}
	return func() (io.ReaderAt, error) {
		stack := make([]vectors, len(p.solved))
		for i := range p.solved {
			d := &p.solved[i]
			side := d.U
			if isA {
				side = d.VT
			}
			stack[i] = vectors{raw: matrixBytes(side), rank: int64(len(d.S))}
			for _, v := range d.S {
				stack[i].root = append(stack[i].root, math.Sqrt(v))
			}
		}
		if isA {
			return openA(p.item, rank, stack)()
		}
		return openB(p.item, rank, r.newScale(p), stack)()
	}
}

func (p *resized) rowsOf(isA bool, rank int64) int64 {
	if isA {
		return rank
	}
	return p.out
}

func (p *resized) colsOf(isA bool, rank int64) int64 {
	if isA {
		return p.in
	}
	return rank
}

// transposedOf gives a matrix of rows x cols whose transpose an opener gives.
func transposedOf(open opener, rows, cols int64) opener {
	return func() (io.ReaderAt, error) {
		src, err := open()
		if err != nil {
			return nil, err
		}
		m := src.(computed)
		return computed{rows * cols, func(i int64) float64 { return m.at(i%cols*rows + i/cols) }}, nil
	}
}

// scaled gives a small tensor of the adapter times a factor.
func (r *Resize) scaled(spec tensor.Spec, factor float64) opener {
	return func() (io.ReaderAt, error) {
		values := make([]float64, spec.NumElements())
		if err := readAll(r.from.Source, spec, values); err != nil {
			return nil, err
		}
		return computed{int64(len(values)), func(i int64) float64 { return values[i] * factor }}, nil
	}
}

// config is the adapter's own config with other ranks and scales.
func (r *Resize) config() (*strictjson.Object, error) {
	o, err := strictjson.ParseObject(r.from.Source.Config.Encode(""))
	if err != nil {
		return nil, err
	}
	most := int64(0)
	for _, p := range r.pairs {
		most = max(most, p.choice.Rank)
	}
	ranks := strictjson.NewObject()
	for _, p := range r.pairs {
		if p.choice.Rank != most {
			ranks.Set(p.patternName, strictjson.NewInt(p.choice.Rank))
		}
	}
	alpha, alphas := strictjson.NewInt(most), ranks.Value()
	if r.opts.Alpha != 0 {
		alphas = strictjson.NewObject().Value()
		if alpha, err = strictjson.NewFloat(r.opts.Alpha); err != nil {
			return nil, err
		}
	}
	o.Set("r", strictjson.NewInt(most))
	o.Set("lora_alpha", alpha)
	o.Set("rank_pattern", ranks.Value())
	o.Set("alpha_pattern", alphas)
	o.Set("use_rslora", strictjson.NewBool(false))
	c, err := adapter.ParseConfig(o)
	if err != nil {
		return nil, fmt.Errorf("adapter_config.json: %w", err)
	}
	for _, p := range r.pairs {
		if c.RankOf(p.patternName) != p.choice.Rank || c.ScaleOf(p.patternName) != r.newScale(p) {
			return nil, fmt.Errorf("adapter_config.json: its patterns give %q another rank or scale", p.patternName)
		}
	}
	return o, nil
}

// certificate says what is left of every product.
func (r *Resize) certificate() Certificate {
	c := Certificate{Share: 1, LowRank: true}
	var all, lost float64
	for _, p := range r.pairs {
		s := p.spectrum
		if p.mirror != nil {
			s.Limit = 0 // its change is the embedding's, which is counted there
		}
		m := Module{
			Name: p.patternName, Role: p.role.String(), Form: pairForm.String(), Shape: p.shape, Rank: p.choice.Rank, Needed: p.needed,
			DeltaNorm: math.Sqrt(s.Total), Capped: p.choice.Capped, Converged: true, Ranks: s.Ranks(), Values: s.values(),
			Parameters: p.choice.Rank * p.cost(),
		}
		m.Residual = relative(s.residual(m.Rank), s.Total)
		m.Best, m.Kept = m.Residual, 1-m.Residual*m.Residual
		f := finding{}
		for _, d := range p.solved {
			f.spectra = append(f.spectra, spectrumOf(d))
		}
		as := &carried{item: p.item, finding: &f, choice: p.choice, spectrum: s}
		m.Rounding, m.Padding = roundingBound(as, r.opts.factorType()), padding(as)
		m.Bytes = m.Parameters * r.opts.factorType().Bits() / 8
		c.Parameters, c.Padding, c.Bytes = c.Parameters+m.Parameters, c.Padding+m.Padding, c.Bytes+m.Bytes
		all, lost = all+s.Total, lost+s.residual(m.Rank)
		c.Modules = append(c.Modules, m)
	}
	for _, spec := range r.from.Source.Specs() {
		if !r.isFactor(spec.Name) {
			c.Parameters, c.Bytes = c.Parameters+spec.NumElements(), c.Bytes+spec.Size()
		}
	}
	c.DeltaNorm = math.Sqrt(all)
	if all > 0 {
		c.Share, c.Residual = 1-lost/all, math.Sqrt(lost/all)
	}
	c.LowRank = c.Share >= plainShare
	return c
}

// layout places the output folder: what stood beside the weights is copied.
func (r *Resize) layout(x *Extraction, specs []tensor.Spec) (*checkpoint.Layout, error) {
	if strings.HasSuffix(r.opts.Output, ".safetensors") {
		return nil, errors.New("an adapter is a folder: its config can't be in a .safetensors file")
	}
	sidecars := []checkpoint.Sidecar{{Name: "adapter_config.json", Data: append(x.config.Encode("  "), '\n')}}
	files, err := r.from.Source.SideFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		sidecars = append(sidecars, checkpoint.Sidecar{Name: f.Name, Source: f.Path, Size: f.Size})
	}
	sidecars = append(sidecars, checkpoint.Sidecar{
		Name: "README.md", Data: x.card(nil), Final: func() []byte { return x.card(x.final) },
	})
	return checkpoint.NewLayout(r.opts.Output, specs, sidecars, checkpoint.Options{
		ShardSize: math.MaxInt64, Weights: weightsName, Metadata: x.Metadata(nil),
	})
}

// Sweep returns what each rank would leave of the products. All tasks must have
// run.
func (r *Resize) Sweep(ranks []int64) ([]Point, error) {
	rule := r.opts.Rule
	defer func() { r.opts.Rule = rule }()
	var points []Point
	for _, rank := range ranks {
		r.opts.Rule = Rule{Rank: rank}
		if err := r.opts.Rule.Validate(); err != nil {
			return nil, err
		}
		if err := r.chooseRanks(0); err != nil {
			return nil, err
		}
		c := r.certificate()
		points = append(points, c.point(rank))
	}
	return points, nil
}
