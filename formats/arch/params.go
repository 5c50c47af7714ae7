package arch

import "slices"

// This file says what a row of a table of hyperparameters is: how a setting of
// config.json becomes a key of GGUF and goes back. Both ways of a conversion read the
// same rows. The rows of a table stand in the order of the keys in a file of llama.cpp's
// converter; a later row of the same key gives it another value where it stands.

// Param is one hyperparameter.
type Param struct {
	Key   string   // in GGUF, behind the architecture and a dot
	Names []string // in config.json: the first that is there counts
	Back  string   // the name it goes back to, if that is not the first
	Kind  Kind
	Need  Need
	// Default is the value of a config.json that says nothing; 0 if there is none.
	Default float64
	// ZeroIsNone: a setting of 0 stands for none and gives no key.
	ZeroIsNone bool
	// Null: a file without the key goes back to null, as transformers has a default.
	Null bool
	// OneWay: a rule reads the key, or nothing has to.
	OneWay bool
	// Rule, if there is one, is a computation that writes and reads more than a number.
	// The row has nothing else.
	Rule Rule
}

// Kind is the type of a number.
type Kind uint8

const (
	Whole Kind = iota // uint32
	Real              // float32
)

// Need says whether a number may be missing.
type Need uint8

const (
	// Optional numbers may be missing on either side.
	Optional Need = iota
	// InGGUF: a file always has the key, while a config.json may leave out the setting.
	InGGUF
	// InHF: a config.json always has the setting, or its model can't be converted.
	InHF
	// Always: both.
	Always
)

// HF reports whether config.json must have the setting.
func (n Need) HF() bool { return n == InHF || n == Always }

// GGUF reports whether a file must have the key.
func (n Need) GGUF() bool { return n == InGGUF || n == Always }

// BackName is the setting that a key goes back to.
func (p Param) BackName() string {
	if p.Back != "" || len(p.Names) == 0 {
		return p.Back
	}
	return p.Names[0]
}

// Rule names a computation that no number in a table can state. Package convert has one
// function for each way.
type Rule string

const (
	Heads       Rule = "heads"        // number and size of heads
	RotatedSize Rule = "rotated size" // dimensions of a head that are rotated: all of them
	Causal      Rule = "causal"       // whether a token is blind for what follows
	FileType    Rule = "file type"    // general.file_type
	NoWindow    Rule = "no window"    // a sliding window that no file has a place for
	// SwitchedWindow: the same where a setting says whether there is one.
	SwitchedWindow Rule = "switched window"
	QueryScale     Rule = "query scale" // what a runtime divides queries by, which no file says

	// Rotary embeddings: base and scaling; of families whose files say nothing of them;
	// with factors for long and for short texts.
	Rotary          Rule = "rotary"
	Llama3Rotary    Rule = "rotary with Llama 3's factors"
	RotaryByDefault Rule = "rotary by default"
	LongContext     Rule = "context before long texts"
	LongRotary      Rule = "rotary of long texts"

	// Tables of positions and types of tokens.
	LearnedPositions Rule = "learned positions"
	TokenTypes       Rule = "types of tokens"

	// What single families have.
	MixtralExperts  Rule = "experts of Mixtral"
	QwenExperts     Rule = "experts of Qwen"
	Gemma3Base      Rule = "bases of Gemma 3"
	Gemma3Window    Rule = "window of Gemma 3"
	Phi3Window      Rule = "window of Phi 3"
	SmolLM3Rotation Rule = "layers of SmolLM 3 that are not rotated"
	GraniteHeads    Rule = "heads of Granite"
	GraniteScales   Rule = "multipliers of Granite"
	OlmoWindow      Rule = "window of OLMo 3"
	GPT2Widening    Rule = "widening of GPT-2"
	TextEmbeddings  Rule = "embeddings of texts"
)

// Fixed is a setting that no file states: every model of the family is computed so.
type Fixed struct {
	Name  string
	Texts []string // what config.json may have; the first goes back
	Flag  bool     // what it is, where there are no texts
}

// Bias are the biases that a switch of config.json gives to some modules of GGUF, by the
// last part of their names: all of them or none.
type Bias struct {
	Setting string // empty if they are always there
	Modules []string
}

// Tokens says which tokenizers of a family the converter takes, and what it writes of them.
type Tokens struct {
	Kind TokenKind
	// MadeScores: without a tokenizer.model the scores of its pieces are made of the merges
	// in tokenizer.json, and the file says whether a text gets a space in front.
	MadeScores bool
	NoSpace    bool // no text gets a space in front of its pieces, and the file says so
	Literal    bool // tokens that were added are what the user defined, as they are
	EndOfTurn  int  // that is written where the tokenizer names none; 0 if none is
	CutRows    bool // rows of the embedding that no token has are left out
}

// TokenKind is a kind of tokenizers.
type TokenKind uint8

const (
	PiecesOrBytes TokenKind = iota // SentencePiece if there is a tokenizer.model, else BPE over bytes
	PiecesOnly
	BytesOnly
	WordsOnly    // WordPiece
	PiecesOrGPT2 // SentencePiece, unless the tokenizer is of the class of GPT-2
)

// Param returns the row of a key, the last if there are several.
func (f *Family) Param(key string) (Param, bool) {
	for _, p := range slices.Backward(f.Params) {
		if p.Key == key {
			return p, true
		}
	}
	return Param{}, false
}

// Has reports whether a rule is in the table.
func (f *Family) Has(r Rule) bool {
	return slices.ContainsFunc(f.Params, func(p Param) bool { return p.Rule == r })
}

// common are the hyperparameters of most families (llama.cpp, conversion/base.py).
var common = []Param{
	{Key: "block_count", Names: []string{"n_layers", "num_hidden_layers", "n_layer", "num_layers"}, Back: "num_hidden_layers", Need: Always},
	{Key: "context_length", Names: []string{"max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"}, Need: Always},
	{Key: "embedding_length", Names: []string{"hidden_size", "n_embd", "dim"}, Need: Always},
	{Key: "feed_forward_length", Names: []string{"prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"}, Back: "intermediate_size"},
	{Key: "attention.head_count", Names: []string{"num_attention_heads", "n_head", "n_heads"}, Need: Always},
	{Key: "attention.head_count_kv", Names: []string{"num_key_value_heads", "n_kv_heads"}, OneWay: true},
	{Rule: Causal},
	{Rule: Rotary},
	rmsEpsilon,
	{Key: layerNormEpsilon, Names: layerNormNames, Kind: Real, OneWay: true},
	{Key: "expert_count", Names: []string{"num_local_experts", "num_experts", "n_routed_experts"}, OneWay: true},
	{Key: "expert_used_count", Names: []string{"num_experts_per_tok", "num_experts_per_token", "top_k_experts"}},
	{Key: "expert_group_count", Names: []string{"n_group"}},
	{Key: "expert_group_used_count", Names: []string{"topk_group"}},
	{Key: "attention.key_length", Names: []string{"head_dim"}, OneWay: true},
	{Key: "attention.value_length", Names: []string{"head_dim"}, OneWay: true},
	{Rule: FileType},
	{Rule: Heads},
}

// rmsEpsilon is that of the norms of most families.
var rmsEpsilon = Param{Key: rmsNormEpsilon, Names: []string{"rms_norm_eps", "norm_eps"}, Kind: Real, Need: Always}

// Of families with layer norms; where there are RMS norms nothing reads the key.
const (
	rmsNormEpsilon   = "attention.layer_norm_rms_epsilon"
	layerNormEpsilon = "attention.layer_norm_epsilon"
)

var layerNormNames = []string{"layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"}

// and returns a table with more rows behind it.
func and(table []Param, rows ...Param) []Param { return slices.Concat(table, rows) }

// put returns a table with rows in the places of those of the same keys.
func put(table []Param, rows ...Param) []Param {
	table = slices.Clone(table)
	for _, row := range rows {
		for i := range table {
			if table[i].Key == row.Key {
				table[i] = row
			}
		}
	}
	return table
}

// less returns a table without the rows of some keys or rules.
func less(table []Param, names ...string) []Param {
	return slices.DeleteFunc(slices.Clone(table), func(p Param) bool { return slices.Contains(names, p.Key+string(p.Rule)) })
}

// Activations of feed-forward layers, by the names that config.json has for them.
var (
	silu = []string{"silu", "swish"}
	gelu = []string{"gelu_pytorch_tanh", "gelu_new", "gelu", "gelu_fast"}
)

// Modules of a layer that may have biases.
var (
	queryKeyValue = []string{"attn_q", "attn_k", "attn_v"}
	attentionAll  = append(slices.Clone(queryKeyValue), "attn_output")
	gated         = []string{"ffn_gate", "ffn_up", "ffn_down"}
)
