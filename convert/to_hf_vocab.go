package convert

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file makes the files beside the weights from what a GGUF file says about tokens
// and sampling.

// generationFile says how to sample.
const generationFile = "generation_config.json"

// hfFiles makes the tokenizer and the settings that belong to it.
type hfFiles struct {
	*hfPlanner
	pre      string // asked for
	kind     string // tokenizer.ggml.model
	vocab    tokenizer.Vocabulary
	special  map[string]int // ids by kind
	sidecars []checkpoint.Sidecar
}

// tokenizerFiles makes all files beside config.json and the weights. Without a tokenizer
// in the file there are fewer.
func (h *hfPlanner) tokenizerFiles(pre string) ([]checkpoint.Sidecar, error) {
	f := &hfFiles{hfPlanner: h, pre: pre, special: make(map[string]int)}
	for _, step := range []func() error{f.readVocabulary, f.writeVocabulary, f.writeTokenizerConfig, f.writeGeneration, f.writePooling} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return f.sidecars, nil
}

func (f *hfFiles) add(name string, data []byte) {
	f.sidecars = append(f.sidecars, checkpoint.Sidecar{Name: name, Data: data})
}

// tokenKey is a key of the tokenizer.
func tokenKey(name string) string { return "tokenizer.ggml." + name }

// readVocabulary reads the tokens.
func (f *hfFiles) readVocabulary() error {
	kind, ok, err := f.keys.OptText(tokenKey("model"))
	if err != nil {
		return f.errorf("%w", err)
	}
	if f.kind = kind; !ok || kind == "none" || kind == "no_vocab" {
		f.kind = ""
		f.decide("no-tokenizer", "the file has no tokenizer: none is written")
		return nil
	}
	if kind != "llama" && kind != "gpt2" && kind != "bert" {
		return f.errorf("its tokenizer is %q; llama (SentencePiece), gpt2 (BPE over bytes) and bert (WordPiece) can be written as tokenizer.json", kind)
	}
	v := &f.vocab
	if v.Tokens, err = f.keys.Strings(tokenKey("tokens")); err != nil {
		return f.errorf("%w", err)
	}
	if rows := f.stored["token_embd.weight"].Shape[0]; int64(len(v.Tokens)) > rows {
		return f.errorf("it has %d tokens, the embedding %d rows", len(v.Tokens), rows)
	}
	if err := f.readTypes(); err != nil {
		return err
	}
	switch kind {
	case "llama":
		err = f.readScores()
	case "bert":
		err = f.readWords()
	default:
		err = f.readMerges()
	}
	if err != nil {
		return err
	}
	if err := f.readSpecials(); err != nil {
		return err
	}
	return f.readAround()
}

// readWords reads a WordPiece model, whose tokens say where a word begins: those of
// tokenizer.json say where one goes on.
func (f *hfFiles) readWords() error {
	v := &f.vocab
	for id, token := range v.Tokens {
		if v.Types[id] == tokenizer.Control || v.Types[id] == tokenizer.Unknown {
			continue
		}
		word, begins := strings.CutPrefix(token, wordBegun)
		// Older converters leave special tokens as they are, whatever their type.
		if special := strings.HasPrefix(token, "[") && strings.HasSuffix(token, "]"); !begins && !special {
			word = wordContinued + token
		}
		v.Tokens[id] = word
	}
	words := &tokenizer.Words{Lowercase: true}
	lower, ok, err := f.keys.OptBool(tokenKey("normalizer.lowercase"))
	if err != nil {
		return f.errorf("%w", err)
	}
	if ok {
		words.Lowercase = lower
	}
	strip, ok, err := f.keys.OptBool(tokenKey("normalizer.strip_accents"))
	if err != nil {
		return f.errorf("%w", err)
	}
	if ok {
		words.StripAccents = &strip
	}
	v.Words = words
	return nil
}

// readTypes reads the types of tokens, all normal without.
func (f *hfFiles) readTypes() error {
	v := &f.vocab
	types, ok := f.keys.Get(tokenKey("token_type"))
	if !ok {
		v.Types = slices.Repeat([]tokenizer.PieceType{tokenizer.Normal}, len(v.Tokens))
		return nil
	}
	numbers, err := types.Ints()
	if err != nil {
		return f.errorf("%s: %w", tokenKey("token_type"), err)
	}
	for i, n := range numbers {
		if n < int64(tokenizer.Normal) || n > int64(tokenizer.Byte) {
			return f.errorf("%s: token %d is of type %d, which is none", tokenKey("token_type"), i, n)
		}
		v.Types = append(v.Types, tokenizer.PieceType(n))
	}
	if len(v.Types) != len(v.Tokens) {
		return f.errorf("it has %d tokens and %d types of tokens", len(v.Tokens), len(v.Types))
	}
	return nil
}

// readScores reads the scores of a SentencePiece model.
func (f *hfFiles) readScores() error {
	value, ok := f.keys.Get(tokenKey("scores"))
	if !ok {
		return f.errorf("its SentencePiece tokenizer has no scores: no merges can be made without")
	}
	scores, err := value.Floats()
	if err != nil {
		return f.errorf("%s: %w", tokenKey("scores"), err)
	}
	v := &f.vocab
	for i, s := range scores {
		if s != s {
			return f.errorf("%s: that of token %d is not a number", tokenKey("scores"), i)
		}
		v.Scores = append(v.Scores, float32(s))
	}
	if f.equalScores() {
		f.kind = ""
		f.decide("no-tokenizer", "every token of its SentencePiece tokenizer has the same score, so that the order of its merges is not in the file: "+
			"no tokenizer is written; take tokenizer.json of the model that it was made from")
		return nil
	}
	v.SpacePrefix = true
	if prefix, ok, err := f.keys.OptBool(tokenKey("add_space_prefix")); err != nil {
		return f.errorf("%w", err)
	} else if ok {
		v.SpacePrefix = prefix
	}
	return nil
}

// equalScores reports whether the scores put no pieces in an order, as in files that were
// made of a tokenizer.json.
func (f *hfFiles) equalScores() bool {
	var scores []float32
	for id, s := range f.vocab.Scores {
		if f.vocab.Types[id] == tokenizer.Normal {
			scores = append(scores, s)
		}
	}
	return len(scores) > 1 && slices.Min(scores) == slices.Max(scores)
}

// readMerges reads the merges and the pre-tokenizer of BPE.
func (f *hfFiles) readMerges() error {
	v := &f.vocab
	merges, err := f.keys.Strings(tokenKey("merges"))
	if err != nil {
		return f.errorf("its BPE tokenizer can't be written without merges: %w", err)
	}
	tokens := make(map[string]bool, len(v.Tokens))
	for _, token := range v.Tokens {
		tokens[token] = true
	}
	part := func(text string) string {
		// Converters put the byte alphabet's space in place of one that would end a part.
		if spaced := strings.ReplaceAll(text, "\u0120", " "); !tokens[text] && tokens[spaced] {
			return spaced
		}
		return text
	}
	for i, m := range merges {
		left, right, ok := strings.Cut(m, " ")
		if !ok {
			return f.errorf("%s: merge %d, %q, is no pair", tokenKey("merges"), i, m)
		}
		v.Merges = append(v.Merges, [2]string{part(left), part(right)})
	}
	stated, _, err := f.keys.OptText(tokenKey("pre"))
	if err != nil {
		return f.errorf("%w", err)
	}
	v.Pre = stated
	if f.pre != "" {
		v.Pre = f.pre
	}
	if !tokenizer.KnowsPre(v.Pre) {
		return f.errorf("its pre-tokenizer is %q, of which it is not known how it splits text in tokenizer.json; --pre NAME says which to take (known: %s)",
			v.Pre, strings.Join(tokenizer.PreNames(), ", "))
	}
	if f.pre != "" && f.pre != stated {
		f.decide("pre-tokenizer", fmt.Sprintf("the pre-tokenizer is %s, as asked for; the file says %q", f.pre, stated))
	}
	return nil
}

// hfSpecials are the kinds of special tokens that transformers has names for.
var hfSpecials = []struct{ kind, key string }{
	{"bos", "bos"}, {"eos", "eos"}, {"unk", "unknown"}, {"sep", "seperator"}, {"pad", "padding"}, {"cls", "cls"}, {"mask", "mask"},
}

// readSpecials reads the special tokens and which of them are put around texts.
func (f *hfFiles) readSpecials() error {
	v := &f.vocab
	for _, s := range hfSpecials {
		id, ok, err := f.keys.OptInt(tokenKey(s.key + "_token_id"))
		if err != nil {
			return f.errorf("%w", err)
		}
		if name, renamed := bertSpecials[s.kind]; renamed && v.Words != nil {
			if _, twice := f.special[name]; twice {
				continue
			}
			s.kind = name
		}
		switch {
		case !ok:
		case id < 0 || id >= int64(len(v.Tokens)):
			f.decide("special-left-out", fmt.Sprintf("the file says that %s is token %d, of %d: it is left out", s.kind, id, len(v.Tokens)))
		default:
			f.special[s.kind] = int(id)
			v.Special = append(v.Special, int(id))
		}
	}
	return nil
}

// bertSpecials are the tokens that converters call by two names.
var bertSpecials = map[string]string{"bos": "cls", "eos": "sep"}

// readAround reads which special tokens are put around texts. Around those of a WordPiece
// model there are always two (llama.cpp 0.5, src/llama-vocab.cpp).
func (f *hfFiles) readAround() error {
	v := &f.vocab
	if v.Words != nil {
		for _, around := range []struct {
			kind string
			ids  *[]int
		}{{"cls", &v.Before}, {"sep", &v.After}} {
			id, ok := f.special[around.kind]
			if !ok {
				return f.errorf("its WordPiece tokenizer has no %s token", around.kind)
			}
			*around.ids = []int{id}
		}
		unknown, ok := f.special["unk"]
		if !ok {
			return f.errorf("its WordPiece tokenizer has no unknown token")
		}
		v.Types[unknown] = tokenizer.Unknown
		return nil
	}
	for _, around := range []struct {
		kind  string
		usual bool
		ids   *[]int
	}{{"bos", v.Scores != nil || tokenizer.PreAddsBOS(v.Pre), &v.Before}, {"eos", false, &v.After}} {
		add, ok, err := f.keys.OptBool(tokenKey("add_" + around.kind + "_token"))
		if err != nil {
			return f.errorf("%w", err)
		}
		if !ok {
			add = around.usual
		}
		id, there := f.special[around.kind]
		if add && !there {
			return f.errorf("%s says that texts get a %s token, and the file has none", tokenKey("add_"+around.kind+"_token"), around.kind)
		}
		if add {
			*around.ids = []int{id}
		}
	}
	return nil
}

// writeVocabulary writes tokenizer.json, and tokenizer.model for those who read that.
func (f *hfFiles) writeVocabulary() error {
	if f.kind == "" {
		return nil
	}
	data, err := f.vocab.Fast()
	if err != nil {
		return f.errorf("its tokenizer: %w", err)
	}
	f.add(fastFile, data)
	lost := fmt.Sprintf("its tokenizer is written as the name of its pre-tokenizer, %s, says: other normalization, and flags of added tokens, are not in the file", f.vocab.Pre)
	switch f.kind {
	case "bert":
		lost = "its WordPiece tokenizer is written with the normalizer and the split of BERT, as every runtime has them: flags of added tokens are not in the file"
	case "llama":
		if data, err = f.vocab.SentencePiece(); err != nil {
			return f.errorf("its tokenizer: %w", err)
		}
		f.add(sentencePieceFile, data)
		lost = "its SentencePiece tokenizer is written as BPE with the merges that its scores amount to, and as tokenizer.model; " +
			"rules of normalization are not in the file, and added tokens match anywhere"
	}
	f.decide("tokenizer-rebuilt", lost)
	return nil
}

// writeTokenizerConfig writes tokenizer_config.json.
func (f *hfFiles) writeTokenizerConfig() error {
	if f.kind == "" {
		return nil
	}
	o := strictjson.NewObject()
	o.Set("tokenizer_class", strictjson.NewString("PreTrainedTokenizerFast"))
	v := &f.vocab
	for _, s := range hfSpecials {
		if id, ok := f.special[s.kind]; ok {
			o.Set(s.kind+"_token", strictjson.NewString(v.Tokens[id]))
		}
	}
	for _, around := range []struct {
		kind string
		ids  []int
	}{{"bos", v.Before}, {"eos", v.After}} {
		if v.Words != nil {
			break
		}
		if _, stated := f.keys.Get(tokenKey("add_" + around.kind + "_token")); stated || len(around.ids) > 0 {
			o.Set("add_"+around.kind+"_token", strictjson.NewBool(len(around.ids) > 0))
		}
	}
	if sep, _, err := f.keys.OptBool(tokenKey("add_sep_token")); err == nil && sep {
		o.Set("add_sep_token", strictjson.NewBool(true))
	}
	if prefix, ok, err := f.keys.OptBool(tokenKey("add_space_prefix")); err == nil && ok {
		o.Set("add_prefix_space", strictjson.NewBool(prefix))
	}
	if n, ok, err := f.optInt("context_length"); err == nil && ok {
		o.Set("model_max_length", strictjson.NewInt(n))
	}
	o.Set("clean_up_tokenization_spaces", strictjson.NewBool(v.Words != nil))
	if v.Words != nil {
		o.Set("do_lower_case", strictjson.NewBool(v.Words.Lowercase))
	}
	f.addedDecoder(o)
	if err := f.templates(o); err != nil {
		return err
	}
	f.add(tokenizerConfigFile, append(o.Encode("  "), '\n'))
	return nil
}

// addedDecoder lists the tokens that were added behind a SentencePiece model.
func (f *hfFiles) addedDecoder(o *strictjson.Object) {
	v, all := &f.vocab, strictjson.NewObject()
	for id, token := range v.Tokens {
		isAdded := v.Types[id] == tokenizer.Control || v.Types[id] == tokenizer.UserDefined
		if v.Scores == nil || v.Scores[id] != tokenizer.AddedScore || !isAdded {
			continue
		}
		t := strictjson.NewObject()
		t.Set("content", strictjson.NewString(token))
		t.Set("lstrip", strictjson.NewBool(false))
		t.Set("normalized", strictjson.NewBool(false))
		t.Set("rstrip", strictjson.NewBool(false))
		t.Set("single_word", strictjson.NewBool(false))
		t.Set("special", strictjson.NewBool(v.Types[id] == tokenizer.Control))
		all.Set(strconv.Itoa(id), t.Value())
	}
	if all.Len() > 0 {
		o.Set("added_tokens_decoder", all.Value())
	}
}

// templates writes one chat template, or several with their names.
func (f *hfFiles) templates(o *strictjson.Object) error {
	const key = "tokenizer.chat_template"
	main, ok, err := f.keys.OptText(key)
	if err != nil {
		return f.errorf("%w", err)
	}
	names, several, err := f.keys.OptStrings("tokenizer.chat_templates")
	switch {
	case err != nil:
		return f.errorf("%w", err)
	case !several && ok:
		o.Set("chat_template", strictjson.NewString(main))
	case several:
		var list []strictjson.Value
		add := func(name, text string) {
			t := strictjson.NewObject()
			t.Set("name", strictjson.NewString(name))
			t.Set("template", strictjson.NewString(text))
			list = append(list, t.Value())
		}
		if ok {
			add("default", main)
		}
		for _, name := range names {
			text, err := f.keys.Text(key + "." + name)
			if err != nil {
				return f.errorf("%w", err)
			}
			add(name, text)
		}
		o.Set("chat_template", strictjson.NewArray(list...))
	}
	return nil
}

// writeGeneration writes generation_config.json: what the makers recommend, and the
// tokens that end a text.
func (f *hfFiles) writeGeneration() error {
	if f.family.Has(arch.TextEmbeddings) {
		return nil // it writes nothing
	}
	o := strictjson.NewObject()
	var ends []strictjson.Value
	for _, kind := range []string{"eos", "eot", "eom"} {
		id, ok, err := f.keys.OptInt(tokenKey(kind + "_token_id"))
		if err != nil {
			return f.errorf("%w", err)
		}
		end := strictjson.NewInt(id)
		if ok && id >= 0 && !slices.ContainsFunc(ends, end.Equal) {
			ends = append(ends, end)
		}
	}
	for _, kind := range []string{"bos", "pad"} {
		if id, ok := f.special[kind]; ok {
			o.Set(kind+"_token_id", strictjson.NewInt(int64(id)))
		}
	}
	switch len(ends) {
	case 0:
	case 1:
		o.Set("eos_token_id", ends[0])
	default:
		o.Set("eos_token_id", strictjson.NewArray(ends...))
	}
	if err := f.samplingConfig(o); err != nil {
		return err
	}
	if o.Len() > 0 {
		f.add(generationFile, append(o.Encode("  "), '\n'))
	}
	return nil
}

// samplingConfig writes the settings of sampling.
func (f *hfFiles) samplingConfig(o *strictjson.Object) error {
	const prefix = "general.sampling."
	for _, s := range sampling {
		v, ok := f.keys.Get(prefix + s.key)
		if !ok {
			continue
		}
		name := s.names[len(s.names)-1] // what transformers calls it
		if n, err := v.Int(); err == nil {
			o.Set(name, strictjson.NewInt(n))
			continue
		}
		x, err := v.Float()
		if err != nil {
			return f.errorf("%s: %w", prefix+s.key, err)
		}
		if err := f.setFloat(o, name, x); err != nil {
			return err
		}
	}
	if o.Len() > 0 && f.keysWith(prefix) {
		o.Set("do_sample", strictjson.NewBool(true))
	}
	return nil
}

// keysWith reports whether any key begins with a prefix.
func (h *hfPlanner) keysWith(prefix string) bool {
	for key := range h.keys.All() {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// leftOver names the keys of the tokenizer that no file has a place for.
func (h *hfPlanner) leftOver() {
	var left []string
	known := []string{"model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix", "eot_token_id", "eom_token_id",
		"token_type_count", "normalizer.lowercase", "normalizer.strip_accents"}
	for _, s := range hfSpecials {
		known = append(known, s.key+"_token_id")
	}
	for _, kind := range addKeys {
		known = append(known, "add_"+kind+"_token")
	}
	for key := range h.keys.All() {
		if name, ok := strings.CutPrefix(key, tokenKey("")); ok && !slices.Contains(known, name) {
			left = append(left, key)
		}
	}
	if len(left) > 0 {
		h.decide("keys-left-out", "these keys of the tokenizer have no place in the files of transformers", left...)
	}
}
