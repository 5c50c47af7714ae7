package extract

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/tensor"
)

// Role is what a tensor is in the model, as far as it decides what an adapter can
// hold of its change.
type Role uint8

// The roles.
const (
	Linear    Role = iota // (out, in)
	Conv1D                // a linear layer stored (in, out)
	Conv                  // a convolution whose groups are one, as far as shapes tell
	Experts               // a stack of matrices, one per expert
	Parameter             // a matrix that is not a module's weight
	Embedding             // a table with a row per token
	Head                  // the output layer
	Table                 // another embedding
	Router                // of experts
	Grouped               // a convolution of one input per output
	Vector                // a norm, a scale, anything without columns
	Bias                  // of a module that has a weight
	Fixed                 // not a floating-point tensor
)

var roleNames = [...]string{
	Linear: "linear", Conv1D: "conv1d", Conv: "conv", Experts: "experts", Parameter: "parameter", Embedding: "embedding",
	Head: "head", Table: "table", Router: "router", Grouped: "grouped_conv", Vector: "vector", Bias: "bias", Fixed: "fixed",
}

func (r Role) String() string { return roleNames[r] }

// item is what is decided on as one: a parameter of the model in memory. It is
// one tensor of the files, or the experts' tensors that are stacked in memory.
type item struct {
	module, param string // in memory
	role          Role
	shape         tensor.Shape // in memory, of the tuned model
	parts         []part
	blocks        int64 // matrices in a stack, 1 for all else
	out, in       int64 // of one matrix as the factors see it
	transposed    bool  // stored (in, out)
	resized       bool  // the two sides have another number of rows
	tie           bool  // a stored head that must equal the embedding

	solve   bool   // to be decomposed
	leave   string // why it is left out, "" if it is not
	outside bool   // the user asked to leave it out
}

// part is where rows of a matrix of an item lie in the files: rows [From, From+Rows)
// of the tensor, seen with as many columns as the matrix has.
type part struct {
	pair
	cols, from, rows int64
	block, at        int64 // the matrix and its first row
}

func (it *item) name() string { return it.module + "." + it.param }

// stored returns rows and columns of one matrix as it lies in memory.
func (it *item) stored() (rows, cols int64) {
	if it.transposed {
		return it.in, it.out
	}
	return it.out, it.in
}

// cost is the number of parameters of one direction.
func (it *item) cost() int64 { return it.blocks * (it.out + it.in) }

// isParameter reports whether PEFT adapts the item by the name of the parameter.
func (it *item) isParameter() bool { return it.role == Experts || it.role == Parameter }

// size returns the bytes that the item takes when it is stored whole.
func (it *item) size() int64 {
	n, _ := it.shape.NumElements()
	return n * it.parts[0].tuned.DType.Bits() / 8
}

// makeItems gives every pair its role and stacks what is stacked in memory.
func (s *Survey) makeItems(pairs []pair) error {
	stacks := make(map[string]*item)
	experts := make(map[string]bool) // modules that have experts below
	owners := make(map[string]bool)  // modules with a weight
	for _, p := range pairs {
		name := s.memoryName(p.name)
		if i := strings.Index(name, ".experts."); i >= 0 {
			experts[name[:i]] = true
		}
		if module, param := splitName(name); param == "weight" {
			owners[module] = true
		}
	}
	for _, p := range pairs {
		name := s.memoryName(p.name)
		if it, ok, err := s.stack(stacks, name, p); err != nil {
			return err
		} else if ok {
			if len(it.parts) == 1 {
				s.items = append(s.items, it)
			}
			continue
		}
		it, err := s.makeItem(name, p, experts, owners)
		if err != nil {
			return err
		}
		s.items = append(s.items, it)
	}
	for _, it := range s.items {
		s.modules[it.module] = true
		if it.param == "weight" {
			s.weights[it.module] = it
		}
		if it.param == "in_proj_weight" {
			s.attention[it.module] = true
		}
		if err := s.finishStack(it); err != nil {
			return err
		}
	}
	if s.tiedBase || s.tiedTuned {
		module, _ := splitName(s.head)
		s.modules[module] = true
	}
	return nil
}

// splitName cuts a tensor's name into module and parameter.
func splitName(name string) (module, param string) {
	i := strings.LastIndexByte(name, '.')
	return name[:max(i, 0)], name[i+1:]
}

// makeItem gives a tensor that is a parameter of its own its role.
func (s *Survey) makeItem(name string, p pair, experts, owners map[string]bool) (*item, error) {
	it := &item{shape: p.tuned.Shape, blocks: 1}
	it.module, it.param = splitName(name)
	if it.role = s.roleOf(it, p, experts, owners); s.gguf {
		it.role = s.ggufRole(it, p)
	}
	if err := s.checkShapes(it, p); err != nil {
		return nil, err
	}
	it.tie = p.name == s.head && s.tiedBase && s.tiedTuned
	rows, cols := p.tuned.Rows(), p.tuned.Cols()
	switch {
	case it.role == Experts:
		it.blocks, rows, cols = it.shape[0], it.shape[1], it.shape[2]
		it.transposed = arch.StoresExpertsTransposed(s.modelType)
	case it.role == Conv1D || it.role == Embedding:
		it.transposed = true
	case len(it.shape) < 2:
		rows, cols = 1, p.tuned.NumElements()
	}
	it.out, it.in = rows, cols
	if it.transposed {
		it.out, it.in = cols, rows
	}
	for b := range it.blocks {
		it.parts = append(it.parts, part{pair: p, cols: cols, from: b * rows, rows: rows, block: b})
	}
	return it, nil
}

// roleOf reads the role of a tensor from its place, its name and its shape. Only
// what is certainly a layer that PEFT can adapt becomes one; all else can still be
// saved whole.
func (s *Survey) roleOf(it *item, p pair, experts, owners map[string]bool) Role {
	leaf := it.module[strings.LastIndexByte(it.module, '.')+1:]
	parent, _ := splitName(it.module)
	dims := len(it.shape)
	switch {
	case !p.tuned.DType.IsFloat() || !p.base.DType.IsFloat():
		return Fixed
	case dims < 2 && it.param == "bias" && owners[it.module]:
		return Bias
	case dims < 2:
		return Vector
	case it.param != "weight" && dims == 3:
		return Experts
	case it.param != "weight" && dims == 2:
		return Parameter
	case it.param != "weight":
		return Vector // no form of LoRA; it can be saved
	case p.name == s.embedding:
		return Embedding
	case p.name == s.head:
		return Head
	case dims > 2 && it.shape[1] == 1 && it.shape[0] > 1:
		return Grouped
	case dims > 2:
		return Conv
	case isTable(leaf):
		return Table
	case (leaf == "gate" || leaf == "router") && experts[parent]:
		return Router
	case s.storesConv1D(it.module, it.shape):
		return Conv1D
	}
	return Linear
}

// storesConv1D decides by the model type. Without one, c_attn, which makes three
// outputs of each input, shows it.
func (s *Survey) storesConv1D(module string, shape tensor.Shape) bool {
	if s.modelType != "" || !arch.StoresConv1D("gpt2", module) {
		return arch.StoresConv1D(s.modelType, module)
	}
	for _, spec := range s.tuned.Specs() {
		if len(spec.Shape) == 2 && strings.HasSuffix(spec.Name, ".c_attn.weight") {
			return spec.Shape[1] == 3*spec.Shape[0]
		}
	}
	return false
}

// isTable reports whether a module's name is that of an embedding.
func isTable(leaf string) bool {
	switch leaf {
	case "wte", "wpe", "emb", "shared", "relative_attention_bias":
		return true
	}
	return strings.Contains(leaf, "embed")
}

// checkShapes compares the two sides of a tensor. Only tables may have grown or
// shrunk, with the vocabulary.
func (s *Survey) checkShapes(it *item, p pair) error {
	if p.base.Shape.Equal(p.tuned.Shape) {
		return nil
	}
	table := it.role == Embedding || it.role == Head || p.name == headBias(s.head)
	if table && len(p.base.Shape) == len(p.tuned.Shape) && p.base.Shape[1:].Equal(p.tuned.Shape[1:]) && p.base.DType.IsFloat() {
		it.resized = true
		return nil
	}
	return inputErrorf(s.tuned, "tensor %q has shape %v, the base's is %v: these are different models", p.name, p.tuned.Shape, p.base.Shape)
}

func headBias(head string) string {
	stem, ok := strings.CutSuffix(head, "weight")
	if !ok {
		return ""
	}
	return stem + "bias"
}

// stackedTypes are the model types whose experts are modules of their own in
// files and one stacked parameter in memory, with the older name of the block
// around them: conversion_mapping.py of transformers 5.23.
var stackedTypes = map[string]bool{
	"mixtral": true, "minimax": true, "minimax_m2": true,
	"afmoe": true, "cohere2_moe": true, "deepseek_v2": true, "deepseek_v3": true, "deepseek_v32": true, "dots1": true,
	"ernie4_5_moe": true, "exaone_moe": true, "flex_olmo": true, "glm4_moe": true, "glm4_moe_lite": true, "glm4v_moe": true,
	"glm_moe_dsa": true, "hunyuan_v1_moe": true, "longcat_flash": true, "olmoe": true, "qwen2_moe": true, "qwen3_moe": true,
	"qwen3_next": true, "qwen3_omni_moe": true, "qwen3_omni_moe_text": true, "qwen3_omni_moe_thinker": true, "solar_open": true,
}

// stacks reports whether experts of the files are stacked in memory. Servers that
// take plain adapters read experts as modules of their own.
func (s *Survey) stacks() bool { return stackedTypes[s.modelType] && !s.opts.Plain }

// memoryName is the name that a tensor of the files has in memory.
func (s *Survey) memoryName(name string) string {
	if s.stacks() {
		name = strings.Replace(name, ".block_sparse_moe.", ".mlp.", 1)
	}
	if s.prefix != "" && !strings.HasPrefix(name, s.prefix) && name != s.head && name != headBias(s.head) {
		name = s.prefix + name
	}
	return name
}

// findPrefix finds what the names of the files lack: in memory, where an adapter is
// loaded, they have it.
func (s *Survey) findPrefix() {
	prefix := arch.BodyPrefix(s.modelType)
	if prefix == "" || s.embedding == "" || strings.HasPrefix(s.embedding, prefix) || !arch.HasHead(s.config.Architecture()) {
		return
	}
	s.prefix = prefix
	s.decide("prefix", fmt.Sprintf("the files leave out %q, which the names of %s have when it is loaded: the adapter's have it", prefix, s.config.Architecture()))
}

// stack adds a tensor to the stacked parameter that it is a part of, if it is.
func (s *Survey) stack(stacks map[string]*item, name string, p pair) (*item, bool, error) {
	module, param := splitName(name)
	parts := strings.Split(module, ".")
	if !s.stacks() || param != "weight" || len(parts) < 3 || parts[len(parts)-3] != "experts" || len(p.tuned.Shape) != 2 {
		return nil, false, nil
	}
	expert, err := strconv.ParseInt(parts[len(parts)-2], 10, 64)
	if err != nil {
		return nil, false, nil
	}
	target, half := "", int64(0)
	for _, names := range arch.Experts {
		switch parts[len(parts)-1] {
		case names.Gate:
			target = arch.GateUp
		case names.Up:
			target, half = arch.GateUp, 1
		case names.Down:
			target = arch.Down
		}
	}
	if target == "" {
		return nil, false, nil
	}
	rows, cols := p.tuned.Shape[0], p.tuned.Shape[1]
	it := stacks[strings.Join(parts[:len(parts)-2], ".")+"."+target]
	if it == nil {
		it = &item{module: strings.Join(parts[:len(parts)-2], "."), param: target, role: Experts, in: cols, out: rows}
		if target == arch.GateUp {
			it.out = 2 * rows
		}
		stacks[it.name()] = it
	}
	if !p.base.Shape.Equal(p.tuned.Shape) || !p.base.DType.IsFloat() || !p.tuned.DType.IsFloat() {
		return nil, false, s.checkStacked(p)
	}
	if cols != it.in || (half+1)*rows > it.out || rows*2 != it.out && target == arch.GateUp || rows != it.out && target == arch.Down {
		return nil, false, inputErrorf(s.tuned, "tensor %q has shape %v, other experts of its layer have another", p.name, p.tuned.Shape)
	}
	it.parts = append(it.parts, part{pair: p, cols: cols, rows: rows, block: expert, at: half * rows})
	return it, true, nil
}

func (s *Survey) checkStacked(p pair) error {
	if !p.base.Shape.Equal(p.tuned.Shape) {
		return inputErrorf(s.tuned, "tensor %q has shape %v, the base's is %v: these are different models", p.name, p.tuned.Shape, p.base.Shape)
	}
	return inputErrorf(s.tuned, "tensor %q is stored as %s and %s: the difference needs floating-point weights", p.name, p.base.DType.Safetensors(), p.tuned.DType.Safetensors())
}

// finishStack checks that every expert has its part of a stacked parameter.
func (s *Survey) finishStack(it *item) error {
	if it.blocks > 0 {
		return nil
	}
	perBlock := int64(1)
	if it.param == arch.GateUp {
		perBlock = 2
	}
	it.blocks = int64(len(it.parts)) / perBlock
	slices.SortFunc(it.parts, func(a, b part) int {
		if a.block != b.block {
			return int(a.block - b.block)
		}
		return int(a.at - b.at)
	})
	for i, p := range it.parts {
		if p.block != int64(i)/perBlock || p.at != int64(i)%perBlock*p.rows || int64(len(it.parts))%perBlock != 0 {
			return inputErrorf(s.tuned, "the experts of %q are not complete: there are %d tensors of %s", it.module, len(it.parts), it.param)
		}
	}
	it.shape = tensor.Shape{it.blocks, it.out, it.in}
	return nil
}

// choose decides which items are decomposed and which the user leaves out.
func (s *Survey) choose() error {
	target, err := s.patterns("--target", s.opts.Target)
	if err != nil {
		return err
	}
	exclude, err := s.patterns("--exclude", s.opts.Exclude)
	if err != nil {
		return err
	}
	for _, it := range s.items {
		named := len(s.opts.Target) > 0 && target(it)
		switch it.role {
		case Linear, Conv1D:
			it.solve = true
		case Conv, Experts, Parameter:
			it.solve = !s.opts.Plain
		case Embedding, Head:
			it.solve = named && !s.opts.Plain && !it.resized && !it.tie
		}
		switch {
		case exclude(it):
			it.leave, it.outside = "--exclude names them", true
		case len(s.opts.Target) > 0 && !named:
			it.leave, it.outside = "--target does not name them", true
		case s.opts.Plain && !it.solve:
			it.leave = "a plain adapter can't hold them"
		}
		if s.gguf {
			it.leaveGGUF()
		}
		it.solve = it.solve && it.leave == "" && it.out > 0 && it.in > 0 && !s.attention[s.saveRoot(it)]
	}
	return nil
}

// patterns compiles names of modules; one that covers nothing is a mistake.
func (s *Survey) patterns(flag string, list []string) (func(*item) bool, error) {
	for _, pattern := range list {
		if !slices.ContainsFunc(s.items, func(it *item) bool { return covers(pattern, it) }) {
			return nil, inputErrorf(s.tuned, "%s %q names no module of the model", flag, pattern)
		}
	}
	return func(it *item) bool {
		return slices.ContainsFunc(list, func(p string) bool { return covers(p, it) })
	}, nil
}

// covers reports whether a pattern names the module or the tensor of an item, or
// one that it is a part of in the files.
func covers(pattern string, it *item) bool {
	names := []string{it.module, it.name()}
	for _, p := range it.parts {
		module, _ := splitName(p.name)
		names = append(names, module)
	}
	return slices.ContainsFunc(names, func(name string) bool { return adapter.MatchGlob("*."+pattern, "."+name) })
}

// affordableRank is the rank that all decomposed items could have together under
// a budget.
func (s *Survey) affordableRank() int64 {
	var cost int64
	for _, it := range s.items {
		if it.solve {
			cost += it.cost()
		}
	}
	budget := s.opts.Rule.Params
	if s.opts.Rule.Size > 0 {
		budget = s.opts.Rule.Size * 8 / s.opts.factorType().Bits()
	}
	return budget / max(cost, 1)
}

// describe names an item in an error.
func (it *item) describe() string { return fmt.Sprintf("tensor %q (%s)", it.parts[0].name, it.role) }
