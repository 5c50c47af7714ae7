package verify

import (
	"slices"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file compares what a GGUF file says of its tokens with the files of a folder's
// tokenizer: how many there are, which are special, and the chat template.

// checkTokens compares the tokens of a file with a folder.
func (k *keyCheck) checkTokens(folder *checkpoint.Model) error {
	s := &subject{Report: k.Report, model: folder, config: hfrepo.NewConfig(folder.Config)}
	if err := k.countTokens(s); err != nil {
		return err
	}
	v, err := s.vocabularyFiles()
	if err != nil {
		return err
	}
	k.compareTexts(v)
	k.compareAdding(v)
	around := v.around().tokens
	for _, kind := range []struct{ name, key string }{{"bos", "bos"}, {"eos", "eos"}, {"pad", "padding"}, {"unk", "unknown"}} {
		k.compareToken(kind.name, "tokenizer.ggml."+kind.key+"_token_id", v.config, around)
	}
	if err := k.compareTemplate(s, v.config); err != nil {
		return err
	}
	return k.compareEncoding(s)
}

// object reads a JSON file of a folder; an empty one if there is none, or none that can be
// read, which others say.
func (s *subject) object(name string) (*strictjson.Object, error) {
	data, ok, err := s.sideFile(name, maxTokenizer)
	if err != nil {
		return nil, err
	}
	if o, err := strictjson.ParsePythonObject(data); ok && err == nil {
		return o, nil
	}
	return strictjson.NewObject(), nil
}

// countTokens compares the number of tokens.
func (k *keyCheck) countTokens(s *subject) error {
	ids, source, err := s.tokenizerIDs()
	if err != nil {
		k.add("tokenizer-unreadable", "", "%v", err)
		return nil
	}
	v, ok := k.keys.Get("tokenizer.ggml.tokens")
	if !ok || ids == 0 {
		return nil
	}
	// Ids behind the last row of the embedding mean nothing.
	if rows, ok := s.embeddingRows(); ok {
		ids = min(ids, rows)
	} else if size, _, ok := k.config.number("vocab_size"); ok && size > 0 {
		ids = min(ids, int64(size))
	}
	tokens := int64(v.Len())
	switch {
	case k.converted.GGUF() != nil && tokens < ids:
		k.add("vocabulary-lost", "", "the file has %d tokens, %s has ids up to %d", tokens, source, ids-1).measured(float64(tokens), float64(ids))
	case k.converted.GGUF() == nil && ids < k.lastToken(tokens):
		k.add("vocabulary-lost", "", "%s has ids up to %d, the file %d tokens", source, ids-1, k.lastToken(tokens)).measured(float64(ids), float64(k.lastToken(tokens)))
	}
	return nil
}

// lastToken counts the tokens of a file up to the last that is not there to fill up.
func (k *keyCheck) lastToken(tokens int64) int64 {
	const unused = 5
	v, _ := k.keys.Get("tokenizer.ggml.token_type")
	kinds, err := v.Ints()
	if err != nil || int64(len(kinds)) != tokens {
		return tokens
	}
	for tokens > 0 && kinds[tokens-1] == unused {
		tokens--
	}
	return tokens
}

// likeTokens are the tokens that stand for others where those are not named.
var likeTokens = map[string]string{"bos": "cls", "eos": "sep"}

// compareToken compares a special token. The file has its id; that must be the one of
// config.json, or have the text that tokenizer_config.json names or that is put around
// texts, which go apart in many models.
func (k *keyCheck) compareToken(kind, key string, config *strictjson.Object, around []string) {
	id, ok, err := k.keys.OptInt(key)
	if err != nil || !ok {
		return
	}
	ids := k.config.ids(kind + "_token_id")
	var texts []string
	for _, name := range []string{kind, likeTokens[kind]} {
		if text, ok := textOf(config, name+"_token"); ok {
			texts = append(texts, text)
		}
	}
	if len(texts)+len(ids) == 0 || slices.Contains(ids, id) {
		return
	}
	is, ok := k.token(id)
	if ok && (slices.Contains(texts, is) || slices.Contains(around, is)) {
		return
	}
	k.add("key-differs", "", "%s is %d, the token %q; by config.json it is one of %v, by tokenizer_config.json one of %q", key, id, is, ids, texts)
}

// token is the text of a token of the file.
func (k *keyCheck) token(id int64) (string, bool) {
	v, ok := k.keys.Get("tokenizer.ggml.tokens")
	if !ok || id < 0 || id >= int64(v.Len()) {
		return "", false
	}
	item, err := v.Elem(int(id))
	if err != nil {
		return "", false
	}
	text, err := item.Text()
	return text, err == nil
}

// textOf is a token of tokenizer_config.json: a text, or an object with one.
func textOf(config *strictjson.Object, name string) (string, bool) {
	v, _ := config.Get(name)
	if o, err := v.Object(); err == nil {
		v, _ = o.Get("content")
	}
	text, err := v.Text()
	return text, err == nil
}

// ids are those of a setting that is one id or a list.
func (s settings) ids(name string) []int64 {
	v, _ := s.find(name)
	if id, err := v.Int(); err == nil {
		return []int64{id}
	}
	ids, err := v.Ints()
	if err != nil {
		return nil
	}
	return ids
}

// templateOf is the chat template of tokenizer_config.json: a text, or the one that is
// named default of a list.
func templateOf(config *strictjson.Object) (string, bool) {
	if text, ok := textOf(config, "chat_template"); ok {
		return text, true
	}
	items, _, _ := config.OptItems("chat_template")
	for _, item := range items {
		if o, err := item.Object(); err == nil {
			if name, _ := o.String("name"); name == "default" {
				return textOf(o, "template")
			}
		}
	}
	return "", false
}

// compareTemplate compares the chat template.
func (k *keyCheck) compareTemplate(s *subject, config *strictjson.Object) error {
	want, ok := templateOf(config)
	if !ok {
		data, there, err := s.sideFile("chat_template.jinja", maxSideFile)
		if err != nil {
			return err
		}
		want, ok = string(data), there
	}
	is, has, err := k.keys.OptText("tokenizer.chat_template")
	inFile := k.converted.GGUF() != nil
	switch {
	case err != nil:
	case ok && has && is != want:
		k.add("key-differs", "", "the chat template of the folder (%d bytes) and tokenizer.chat_template (%d bytes) are not one text", len(want), len(is))
	case ok && !has && inFile:
		k.add("template-missing", "", "there is no tokenizer.chat_template; the base has one of %d bytes", len(want))
	case has && !ok && !inFile:
		k.add("template-missing", "", "the folder has none; tokenizer.chat_template has %d bytes", len(is))
	}
	return nil
}
