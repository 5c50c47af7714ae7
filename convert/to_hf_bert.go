package convert

import (
	"slices"
	"strconv"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file makes the files with which sentence-transformers makes embeddings of texts.

// tokenTypes writes the number of types of tokens.
func (h *hfPlanner) tokenTypes() error {
	types, ok := h.stored["token_types.weight"]
	if !ok || len(types.Shape) != 2 {
		return h.errorf("it has no table of types of tokens")
	}
	h.setInt("type_vocab_size", types.Shape[0])
	return nil
}

// embeddingConfig says what the file has not of the model.
func (h *hfPlanner) embeddingConfig() error {
	h.config.Delete("is_causal")
	h.decide("pooler", "the file has no pooler and no heads: transformers makes a pooler with random numbers unless it is told add_pooling_layer=False; embeddings of texts do not use it")
	return nil
}

// The numbers of pooling_type: the embeddings of all tokens are kept, or a head ranks texts.
const (
	noPooling   = 0
	rankPooling = 4
)

// moduleClass is what the classes of modules begin with.
const moduleClass = "sentence_transformers.models."

// writePooling writes the modules of sentence-transformers, if the file says how the
// embeddings of a text become one.
func (f *hfFiles) writePooling() error {
	if !f.family.Has(arch.TextEmbeddings) {
		return nil
	}
	number, ok, err := f.optInt(poolingKey)
	if err != nil || !ok || number == noPooling {
		return err
	}
	i := slices.IndexFunc(poolingTypes, func(t poolingType) bool { return int64(t.number) == number })
	switch {
	case number == rankPooling:
		return f.errorf("its %s.%s is %d: it ranks texts by a head that BertModel has not", f.arch, poolingKey, number)
	case i < 0:
		return f.errorf("its %s.%s is %d, which is none: 1 is the mean, 2 the first token, 3 the last", f.arch, poolingKey, number)
	}
	const folder = "1_Pooling"
	var modules []strictjson.Value
	for _, m := range []struct{ path, class string }{{"", "Transformer"}, {folder, "Pooling"}} {
		o := strictjson.NewObject()
		o.Set("idx", strictjson.NewInt(int64(len(modules))))
		o.Set("name", strictjson.NewString(strconv.Itoa(len(modules))))
		o.Set("path", strictjson.NewString(m.path))
		o.Set("type", strictjson.NewString(moduleClass+m.class))
		modules = append(modules, o.Value())
	}
	f.add(modulesFile, append(strictjson.NewArray(modules...).Encode("  "), '\n'))

	width, err := f.mustInt("embedding_length")
	if err != nil {
		return err
	}
	pooling := strictjson.NewObject()
	pooling.Set("word_embedding_dimension", strictjson.NewInt(width))
	for _, flag := range []string{"pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens",
		"pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"} {
		pooling.Set(flag, strictjson.NewBool(flag == poolingTypes[i].flag))
	}
	pooling.Set("include_prompt", strictjson.NewBool(true))
	f.add(folder+"/"+poolingFile, append(pooling.Encode("  "), '\n'))

	length, err := f.mustInt("context_length")
	if err != nil {
		return err
	}
	texts := strictjson.NewObject()
	texts.Set("max_seq_length", strictjson.NewInt(length))
	texts.Set("do_lower_case", strictjson.NewBool(false))
	f.add("sentence_bert_config.json", append(texts.Encode("  "), '\n'))
	f.decide("pooling", "the modules of sentence-transformers are a transformer and its pooling: whether the embeddings are brought to length 1 after it is not in the file")
	return nil
}
