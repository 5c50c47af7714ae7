package arch

// This file knows which tensors the layers of a decoder have, and their shapes in
// terms of the config: what transformers builds from a config.json, and llama.cpp
// from the keys of a GGUF file.

// Size names a size that a config states.
type Size uint8

// The sizes of a decoder. Queries and Keys are heads times the size of a head.
const (
	Hidden Size = iota
	Intermediate
	Queries
	Keys
	Vocabulary
	HeadSize
	QueriesKeysValues // the three projections in one
	GateUp2           // gate and up in one
	TripleHidden      // GPT-2's c_attn
	Positions         // learned positions
)

// DecoderTensor is a tensor of a decoder: of a layer, where Name follows the
// layer's own prefix, or of the model.
type DecoderTensor struct {
	Name     string
	Shape    []Size
	Optional bool // some models of the family have it
}

// Decoder describes a family of decoders.
type Decoder struct {
	Root   string          // that all names but the head's begin with; a model without its head lacks it
	Layers string          // that stands between the root and the number of a layer
	Layer  []DecoderTensor // names begin behind the number
	Model  []DecoderTensor // whole names
	Keys   DecoderKeys
}

// DecoderKeys are the names of the settings in config.json; "" where a family has
// none.
type DecoderKeys struct {
	Hidden, Intermediate, Heads, KVHeads, HeadSize, Layers, Vocabulary, Positions string
}

var llamaKeys = DecoderKeys{
	Hidden: "hidden_size", Intermediate: "intermediate_size", Heads: "num_attention_heads", KVHeads: "num_key_value_heads",
	HeadSize: "head_dim", Layers: "num_hidden_layers", Vocabulary: "vocab_size",
}

// llamaModel is what a model of the llama kind has beside its layers. The head is
// left out: it may be tied.
var llamaModel = []DecoderTensor{
	{Name: "model.embed_tokens.weight", Shape: []Size{Vocabulary, Hidden}},
	{Name: "model.norm.weight", Shape: []Size{Hidden}},
	{Name: "lm_head.weight", Shape: []Size{Vocabulary, Hidden}, Optional: true},
}

// attention, biases and mlp are the parts of a layer that families share.
var (
	attention = []DecoderTensor{
		{Name: "self_attn.q_proj.weight", Shape: []Size{Queries, Hidden}},
		{Name: "self_attn.k_proj.weight", Shape: []Size{Keys, Hidden}},
		{Name: "self_attn.v_proj.weight", Shape: []Size{Keys, Hidden}},
		{Name: "self_attn.o_proj.weight", Shape: []Size{Hidden, Queries}},
	}
	mlp = []DecoderTensor{
		{Name: "mlp.gate_proj.weight", Shape: []Size{Intermediate, Hidden}},
		{Name: "mlp.up_proj.weight", Shape: []Size{Intermediate, Hidden}},
		{Name: "mlp.down_proj.weight", Shape: []Size{Hidden, Intermediate}},
	}
	twoNorms = []DecoderTensor{
		{Name: "input_layernorm.weight", Shape: []Size{Hidden}},
		{Name: "post_attention_layernorm.weight", Shape: []Size{Hidden}},
	}
	fourNorms = []DecoderTensor{
		{Name: "pre_feedforward_layernorm.weight", Shape: []Size{Hidden}},
		{Name: "post_feedforward_layernorm.weight", Shape: []Size{Hidden}},
	}
	headNorms = []DecoderTensor{
		{Name: "self_attn.q_norm.weight", Shape: []Size{HeadSize}},
		{Name: "self_attn.k_norm.weight", Shape: []Size{HeadSize}},
	}
	// wholeNorms are those of all heads together, and the ones behind each half of a layer.
	wholeNorms = []DecoderTensor{
		{Name: "self_attn.q_norm.weight", Shape: []Size{Queries}},
		{Name: "self_attn.k_norm.weight", Shape: []Size{Keys}},
		{Name: "post_attention_layernorm.weight", Shape: []Size{Hidden}},
		{Name: "post_feedforward_layernorm.weight", Shape: []Size{Hidden}},
	}
	fused = []DecoderTensor{
		{Name: "self_attn.qkv_proj.weight", Shape: []Size{QueriesKeysValues, Hidden}},
		{Name: "self_attn.o_proj.weight", Shape: []Size{Hidden, Queries}},
		{Name: "mlp.gate_up_proj.weight", Shape: []Size{GateUp2, Hidden}},
		{Name: "mlp.down_proj.weight", Shape: []Size{Hidden, Intermediate}},
	}
)

// biases are those of the projections; a config says which there are in words that
// differ between families.
func biases(optional bool) []DecoderTensor {
	return []DecoderTensor{
		{Name: "self_attn.q_proj.bias", Shape: []Size{Queries}, Optional: optional},
		{Name: "self_attn.k_proj.bias", Shape: []Size{Keys}, Optional: optional},
		{Name: "self_attn.v_proj.bias", Shape: []Size{Keys}, Optional: optional},
	}
}

// otherBiases are rare.
var otherBiases = []DecoderTensor{
	{Name: "self_attn.o_proj.bias", Shape: []Size{Hidden}, Optional: true},
	{Name: "mlp.gate_proj.bias", Shape: []Size{Intermediate}, Optional: true},
	{Name: "mlp.up_proj.bias", Shape: []Size{Intermediate}, Optional: true},
	{Name: "mlp.down_proj.bias", Shape: []Size{Hidden}, Optional: true},
}

// llamaLike is a layer of Llama, with the switches of its biases.
var llamaLike = llamaKind(attention, mlp, twoNorms, biases(true), otherBiases)

func llamaKind(parts ...[]DecoderTensor) Decoder {
	d := Decoder{Root: "model.", Layers: "layers.", Model: llamaModel, Keys: llamaKeys}
	for _, p := range parts {
		d.Layer = append(d.Layer, p...)
	}
	return d
}

// DecoderOf returns the tensors of a model type, or false for a family without a table
// (modelling files of transformers 5.23).
func DecoderOf(modelType string) (Decoder, bool) {
	for _, f := range ggufFamilies {
		if d, ok := f.Decoders[modelType]; ok {
			return d, true
		}
	}
	return Decoder{}, false
}

// ggufLayer are the tensors of a layer in a GGUF file (gguf-py, constants.py),
// without the suffix of the file's own: families have some of them.
var ggufLayer = []DecoderTensor{
	{Name: "attn_q.weight", Shape: []Size{Queries, Hidden}, Optional: true},
	{Name: "attn_k.weight", Shape: []Size{Keys, Hidden}, Optional: true},
	{Name: "attn_v.weight", Shape: []Size{Keys, Hidden}, Optional: true},
	{Name: "attn_q.bias", Shape: []Size{Queries}, Optional: true},
	{Name: "attn_k.bias", Shape: []Size{Keys}, Optional: true},
	{Name: "attn_v.bias", Shape: []Size{Keys}, Optional: true},
	{Name: "attn_output.weight", Shape: []Size{Hidden, Queries}, Optional: true},
	{Name: "attn_q_norm.weight", Shape: []Size{HeadSize}, Optional: true},
	{Name: "attn_k_norm.weight", Shape: []Size{HeadSize}, Optional: true},
	{Name: "attn_norm.weight", Shape: []Size{Hidden}},
	{Name: "ffn_norm.weight", Shape: []Size{Hidden}},
	{Name: "ffn_gate.weight", Shape: []Size{Intermediate, Hidden}, Optional: true},
	{Name: "ffn_up.weight", Shape: []Size{Intermediate, Hidden}, Optional: true},
	{Name: "ffn_down.weight", Shape: []Size{Hidden, Intermediate}, Optional: true},
}

// GGUFDecoder are the tensors of the families of GGUF that [DecoderOf] knows under
// their Hugging Face name.
func GGUFDecoder(architecture string) (Decoder, bool) {
	switch architecture {
	case "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3":
	default:
		return Decoder{}, false
	}
	a := architecture + "."
	return Decoder{
		Layers: "blk.", Layer: ggufLayer,
		Model: []DecoderTensor{
			{Name: "token_embd.weight", Shape: []Size{Vocabulary, Hidden}},
			{Name: "output_norm.weight", Shape: []Size{Hidden}},
			{Name: "output.weight", Shape: []Size{Vocabulary, Hidden}, Optional: true},
		},
		Keys: DecoderKeys{
			Hidden: a + "embedding_length", Intermediate: a + "feed_forward_length", Heads: a + "attention.head_count",
			KVHeads: a + "attention.head_count_kv", HeadSize: a + "attention.key_length", Layers: a + "block_count",
			Vocabulary: a + "vocab_size",
		},
	}, true
}

// Sizes are the sizes that a config states.
type Sizes map[Size]int64

// Resolve computes the sizes from settings. A setting that is not there has the
// default of its family, if it has one; one that is no number of use (a list with an
// entry per layer) is given as 0. What can't be said for every layer is missing.
func (k DecoderKeys) Resolve(setting func(key string) (value int64, stated bool)) Sizes {
	r := resolver{setting: setting, sizes: make(Sizes)}
	hidden := r.read(k.Hidden, 0)
	head := int64(0)
	heads := r.read(k.Heads, 0)
	if heads > 0 && hidden%heads == 0 {
		head = hidden / heads
	}
	head = r.read(k.HeadSize, head)
	kv := r.read(k.KVHeads, heads)
	intermediate := int64(0)
	if k.Intermediate == "n_inner" { // null is four times the width
		intermediate = 4 * hidden
	}
	intermediate = r.read(k.Intermediate, intermediate)

	r.put(Hidden, hidden)
	r.put(TripleHidden, 3*hidden)
	r.put(Vocabulary, r.read(k.Vocabulary, 0))
	r.put(Positions, r.read(k.Positions, 0))
	r.put(Intermediate, intermediate)
	r.put(GateUp2, 2*intermediate)
	r.put(HeadSize, head)
	r.put(Queries, heads*head)
	r.put(Keys, kv*head)
	if kv > 0 {
		r.put(QueriesKeysValues, (heads+2*kv)*head)
	}
	return r.sizes
}

// resolver reads settings; 0 stands for what is not known.
type resolver struct {
	setting func(key string) (int64, bool)
	sizes   Sizes
}

func (r *resolver) read(key string, missing int64) int64 {
	if key == "" {
		return missing
	}
	v, stated := r.setting(key)
	switch {
	case !stated:
		return missing
	case v <= 0 || v > maxSize:
		return 0
	}
	return v
}

func (r *resolver) put(size Size, v int64) {
	if v > 0 {
		r.sizes[size] = v
	}
}

// maxSize bounds a size from a file, so that products of two and a factor fit.
const maxSize = 1 << 30

// Shape returns the shape of a tensor, or false if a size is not known.
func (s Sizes) Shape(t DecoderTensor) ([]int64, bool) {
	shape := make([]int64, len(t.Shape))
	for i, size := range t.Shape {
		v, ok := s[size]
		if !ok {
			return nil, false
		}
		shape[i] = v
	}
	return shape, true
}
