package verify

// The families.
const (
	familyStructure = "structure"
	familyMerge     = "merge"
)

// codes is the table of everything that can be found; docs/verify.md shows it.
var codes = []Code{
	{"shard-stray", familyStructure, Warning, "a weight file of the folder belongs to no index: nothing that loads the folder reads it", "", ""},
	{"index-size", familyStructure, Warning, "total_size of the index is not the size of the tensors", "total_size", "size of the tensors"},
	{"trailing-bytes", familyStructure, Warning, "a GGUF file goes on after its last tensor", "bytes", "0"},
	{"gguf-key", familyStructure, Warning, "a key of a GGUF file is not what llama.cpp expects", "", ""},
	{"shape-config", familyStructure, Error, "a tensor has another shape than its config asks for", "", ""},
	{"layer-count", familyStructure, Error, "there are more layers than the config says", "layers", "layers of the config"},
	{"tensor-missing", familyStructure, Error, "the model needs a tensor that is not there", "", ""},
	{"family-unknown", familyStructure, Info, "there is no table of this model type: shapes and layers are not compared with the config", "", ""},
	{"head-missing", familyStructure, Error, "the head is not stored, and the config says that it is not the embedding", "", ""},
	{"tied-differs", familyStructure, Error, "the config ties the head to the embedding, but the stored head has other values, which loaders that tie drop (transformers 5 keeps both)", "elements that differ", "0"},
	{"tied-stored", familyStructure, Info, "the head is tied to the embedding and stored a second time", "", ""},
	{"vocabulary-short", familyStructure, Error, "the tokenizer has ids beyond the last row of the embedding", "rows", "ids of the tokenizer"},
	{"vocabulary-padded", familyStructure, Info, "the embedding has rows that the tokenizer never asks for", "rows", "ids of the tokenizer"},
	{"tokenizer-unreadable", familyStructure, Warning, "a file of the tokenizer can't be read, so that the vocabulary is not checked", "", ""},
	{"dtype-config", familyStructure, Warning, "no weight has the type that the config states", "", ""},
	{"dtype-mixed", familyStructure, Info, "the matrices are stored in several floating-point types", "", ""},
	{"quantization-stale", familyStructure, Error, "the config says that the weights are quantized, but they are not", "", ""},
	{"quantization-missing", familyStructure, Error, "the weights are quantized, but the config does not say so", "", ""},
	{"quantization-differs", familyStructure, Error, "the config names another quantization than the weights have", "", ""},
	{"custom-code", familyStructure, Warning, "the model brings code that runs when it is loaded with trust_remote_code", "", ""},
	{"chat-template", familyStructure, Info, "there is a chat template: a program that writes the prompts", "", ""},
	{"non-finite", familyStructure, Error, "a tensor has infinities or NaN", "elements", "0"},
	{"all-zero", familyStructure, Warning, "every element of a matrix is zero", "elements", ""},
	{"tensor-unreadable", familyStructure, Error, "the values of a tensor can't be computed from what is stored", "", ""},
	{"adapter-config", familyStructure, Error, "the config of an adapter does not fit its tensors, or can't be used", "", ""},
	{"adapter-half", familyStructure, Error, "of the two factors of a module one is missing", "", ""},
	{"adapter-rank", familyStructure, Error, "the factors of a module have another rank than each other, or than the config says", "rank", "rank of the config"},
	{"zero-delta", familyStructure, Warning, "a module of an adapter changes nothing: one of its factors is zero", "", ""},
	{"no-effect", familyStructure, Error, "no module of an adapter changes anything", "modules", "0"},
}
