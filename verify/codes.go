package verify

// The families.
const (
	familyStructure  = "structure"
	familyMerge      = "merge"
	familyLoftQ      = "loftq"
	familyQuantized  = "quantized"
	familyConversion = "conversion"

	familyFunction   = "function"
	familyOutput     = "end-to-end"
	familyProvenance = "provenance"
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
	{"factor-swapped", familyStructure, Error, "the factors of a module are in each other's place", "", ""},
	{"factor-transposed", familyStructure, Error, "a factor of a module is stored transposed", "", ""},
	{"zero-delta", familyStructure, Warning, "a module of an adapter changes nothing: one of its factors is zero", "", ""},
	{"no-effect", familyStructure, Error, "no module of an adapter changes anything", "modules", "0"},

	{"merge-missing", familyMerge, Error, "the merge has a tensor that the model lacks", "", ""},
	{"merge-extra", familyMerge, Warning, "the model has a tensor that the merge has not", "", ""},
	{"merge-shape", familyMerge, Error, "a tensor has another shape than the merge gives it", "", ""},
	{"merge-dtype", familyMerge, Info, "tensors are stored as another type than the base's", "", ""},
	{"not-compared", familyMerge, Error, "a tensor is stored in a way that can't be compared with a merge", "", ""},
	{"tensor-changed", familyMerge, Error, "a tensor that no adapter changes is not the base's", "elements that differ", "0"},
	{"delta-missing", familyMerge, Error, "a tensor is the base's: the change of the adapters is not in it", "scale of the change", "1"},
	{"delta-scale", familyMerge, Error, "a tensor holds the change at another scale: applied twice, or another formula of the scale", "scale of the change", "1"},
	{"deviates", familyMerge, Error, "a tensor is not the merge, nor a multiple of the change from it", "largest deviation", "what rounding allows"},
	{"peft-double-rounding", familyMerge, Info, "the change was rounded before it was added and the sum again, as PEFT does with safe_merge and with 16-bit adapters", "values that are not the nearest", "0"},
	{"base-rounded", familyMerge, Info, "base or sum were rounded to 16 bits more than once", "values that are not the nearest", "0"},
	{"block-differs", familyMerge, Warning, "in a tensor of a GGUF file, a few blocks do not hold the codes of the merge, which all others do", "blocks", "0"},
	{"encoder-other", familyMerge, Info, "the codes of a tensor are not those of llama.cpp's encoder without an importance matrix", "relative error", "of that encoder"},
	{"overflow", familyMerge, Error, "values are infinite where those of the merge are finite: the type is too narrow for them", "values", "0"},
	{"delta-survival", familyMerge, Warning, "a good part of the change was lost by rounding", "share that is left", "share"},
	{"delta-zero", familyMerge, Warning, "the adapters have factors for a tensor, and change nothing", "", ""},
	{"adapter-missing", familyMerge, Error, "no tensor holds the change of the adapters: the model is the base", "tensors", "0"},
	{"other-base", familyMerge, Error, "most tensors that no adapter changes differ: the merge was made from another base", "tensors that differ", "0"},

	{"loftq-scale", familyLoftQ, Error, "a pair fits what quantization left out at another scale than it is applied with: made for another alpha, or trained since", "best scale by the scale", "the nearest that rounding allows"},
	{"loftq-empty", familyLoftQ, Warning, "a pair corrects nothing of what quantization left out", "", ""},
	{"loftq-worse", familyLoftQ, Error, "quantized weight and pair are farther from the base than the quantized weight alone", "relative error with the pair", "without"},
	{"loftq-other", familyLoftQ, Info, "the adapter changes a tensor without a pair of factors", "", ""},

	{"quant-missing", familyQuantized, Error, "the base has a tensor that the quantized model lacks", "", ""},
	{"quant-extra", familyQuantized, Warning, "the quantized model has a tensor that the base has not", "", ""},
	{"quant-shape", familyQuantized, Error, "a tensor has another shape than in the base", "", ""},
	{"quant-changed", familyQuantized, Error, "a tensor that is not quantized is not the base's", "elements that differ", "0"},
	{"quant-error", familyQuantized, Error, "values are farther from the base than their format can be", "largest error, or the relative one", "what the format can be off there, or 1"},
	{"quant-not-nearest", familyQuantized, Info, "codes are not the nearest, as those of other thresholds are", "share of the codes", "0"},
	{"quant-none", familyQuantized, Error, "no tensor of the model is quantized", "", ""},

	{"convert-missing", familyConversion, Error, "the base has a tensor that the converted model lacks", "", ""},
	{"convert-extra", familyConversion, Warning, "the converted model has a tensor that the base has not", "", ""},
	{"convert-shape", familyConversion, Error, "a tensor has another shape than the base's has in this format", "", ""},
	{"convert-dropped", familyConversion, Info, "a tensor of the base has no place in the format, or rows of it have none", "", ""},
	{"rows-missing", familyConversion, Error, "an embedding or a head lacks rows of the last tokens", "rows", "rows of the base"},
	{"rows-permuted", familyConversion, Error, "the rows of the query or key heads are in an order that the runtime turns wrongly", "values that differ", "0"},
	{"rows-unproved", familyConversion, Info, "the order of the rows of query and key heads is only compared with what convert makes of them", "", ""},
	{"norm-shift", familyConversion, Error, "a norm is off by 1: the 1 that a family adds to its norms was forgotten, or added twice", "values that differ", "0"},
	{"tensor-elsewhere", familyConversion, Error, "a tensor holds the values of another one of the base", "values that differ", "0"},
	{"tensor-transposed", familyConversion, Error, "a matrix is stored transposed", "values that differ", "0"},
	{"value-differs", familyConversion, Error, "values are not those of the base, rounded to the type that they are stored as", "values that differ", "0"},
	{"value-neighbour", familyConversion, Info, "values are next to those of the base, and not the nearest: cut off, or rounded twice", "values that are not the nearest", "0"},
	{"head-lost", familyConversion, Error, "the head is not stored, and the embedding, which stands in for it, has other values", "values that differ", "0"},
	{"head-untied", familyConversion, Error, "a head was added where the base's is its embedding, with other values", "values that differ", "0"},
	{"head-form", familyConversion, Info, "the head is stored in one model and is the embedding in the other, with the same values", "", ""},
	{"key-differs", familyConversion, Error, "a setting has another value than the base's", "value", "value by the base"},
	{"key-missing", familyConversion, Error, "a setting of the base is lost, and what stands in for it is another value", "", ""},
	{"template-missing", familyConversion, Warning, "the chat template of the base is lost", "", ""},
	{"token-differs", familyConversion, Error, "tokens or merges are others than in the base's tokenizer", "tokens that differ", "0"},
	{"vocabulary-lost", familyConversion, Error, "there are fewer tokens than the base's tokenizer has", "tokens", "tokens of the base"},

	{"tokenizer-differs", familyConversion, Error, "tokenizer.json and the tokenizer of the file make other tokens of a text", "", ""},
	{"tokenizer-not-run", familyConversion, Info, "a tokenizer has parts that are not known here: no text is compared", "", ""},

	{"function-differs", familyFunction, Error, "outputs of a module are farther from those of base and adapters than roundings explain", "largest difference of the first", "what roundings can do"},
	{"function-scale", familyFunction, Error, "the outputs of a module hold the change at another scale than the merge", "scale of the change", "scale that rounding the merge explains"},
	{"function-drowned", familyFunction, Info, "roundings of outputs hide the scale of the change of a module", "uncertainty of the scale", "0.5"},

	{"output-differs", familyOutput, Error, "the merge's logits are farther from those of base and adapters than rounding its weights explains", "distance of the logits", "what roundings of the weights allow"},
	{"output-kl", familyOutput, Error, "the logits of a quantized model diverge from the original's by more than was allowed", "mean KL divergence, nats", "what was allowed"},
	{"output-top1", familyOutput, Error, "a quantized model has another first token than the original at more positions than was allowed", "share of positions with the same", "what was asked for"},
	{"output-drowned", familyOutput, Warning, "rounding the weights moves the logits as much as the adapters do: nothing can be said about the change", "distance that the adapters make", "what roundings of the weights allow"},

	{"sums-differ", familyProvenance, Error, "a file is not the one that SHA256SUMS lists", "", ""},
	{"sums-missing", familyProvenance, Error, "a file that SHA256SUMS lists is not there", "", ""},
	{"sums-unlisted", familyProvenance, Warning, "a file of weights or settings is not in SHA256SUMS", "", ""},
	{"sums-unreadable", familyProvenance, Error, "SHA256SUMS is not a list of hashes and names", "", ""},
	{"manifest-differs", familyProvenance, Error, "a tensor is not the one that manifest.json lists", "", ""},
	{"manifest-missing", familyProvenance, Error, "a tensor that manifest.json lists is not there", "", ""},
	{"manifest-extra", familyProvenance, Warning, "a tensor is not in manifest.json", "", ""},
	{"manifest-unreadable", familyProvenance, Error, "manifest.json is not a list of tensors", "", ""},
	{"record-missing", familyProvenance, Warning, "the model does not record what it was made of", "", ""},
	{"record-unreadable", familyProvenance, Error, "the record of what the model was made of can't be read", "", ""},
	{"input-differs", familyProvenance, Error, "a file of an input is not what the model was made of", "", ""},
	{"input-not-given", familyProvenance, Warning, "the model was made of a file that is not among the inputs given", "", ""},
}
