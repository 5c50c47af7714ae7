package verify

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file compares the tokens of a GGUF file, one by one, and its merges with the files of
// a folder's tokenizer, as they are written there.

// vocabularyFiles are what the files of a tokenizer say.
type vocabularyFiles struct {
	texts  map[int64][]string // of the tokens, by id: files contradict each other
	merges [][2]string
	fast   *strictjson.Object // tokenizer.json
	config *strictjson.Object // tokenizer_config.json
}

// vocabularyFiles reads the files of a folder. What can't be read is no error here: the
// count of the tokens has said so.
func (s *subject) vocabularyFiles() (*vocabularyFiles, error) {
	v := &vocabularyFiles{texts: make(map[int64][]string), fast: strictjson.NewObject()}
	var err error
	if v.config, err = s.object("tokenizer_config.json"); err != nil {
		return nil, err
	}
	data, ok, err := s.sideFile("tokenizer.json", maxTokenizer)
	if err != nil {
		return nil, err
	}
	if fast, err := tokenizer.ParseFast(data); ok && err == nil {
		v.fast, v.merges = fast.Root, fast.Merges
		for id, text := range fast.Vocab {
			v.note(id, text)
		}
		for _, t := range fast.Added {
			v.note(t.ID, t.Content)
		}
	}
	data, ok, err = s.sideFile("tokenizer.model", maxTokenizer)
	if err != nil {
		return nil, err
	}
	if pieces, err := tokenizer.ParseSentencePiece(data); ok && err == nil {
		for id, p := range pieces {
			v.note(int64(id), p.Text)
		}
	}
	added, err := s.object("added_tokens.json")
	if err != nil {
		return nil, err
	}
	for text, id := range added.All() {
		if id, err := id.Int(); err == nil {
			v.note(id, text)
		}
	}
	v.noteDecoder()
	return v, nil
}

// noteDecoder reads the added tokens of tokenizer_config.json.
func (v *vocabularyFiles) noteDecoder() {
	decoder, _, _ := v.config.OptObject("added_tokens_decoder")
	if decoder == nil {
		return
	}
	for key, token := range decoder.All() {
		id, err := strconv.ParseInt(key, 10, 64)
		o, notObject := token.Object()
		if err != nil || notObject != nil {
			continue
		}
		if text, err := o.String("content"); err == nil {
			v.note(id, text)
		}
	}
}

func (v *vocabularyFiles) note(id int64, text string) { v.texts[id] = append(v.texts[id], text) }

// The mark that stands for a space in SentencePiece, and the one of BERT for a token that
// goes on.
const spaceMark, goesOn = "\u2581", "##"

// isToken reports whether a token of a file may be one of the texts: BERT's are written with
// a mark where words begin instead of one where they go on, and in tokens that are added as
// they are the mark of a space is a space.
func isToken(token string, texts []string, bert bool) bool {
	return slices.ContainsFunc(texts, func(text string) bool {
		switch {
		case token == text:
			return true
		case bert && strings.HasPrefix(text, goesOn):
			return token == text[len(goesOn):]
		case bert:
			return token == spaceMark+text
		}
		return token == strings.ReplaceAll(text, spaceMark, " ")
	})
}

// compareTexts compares the tokens of the file with those of the folder.
func (k *keyCheck) compareTexts(v *vocabularyFiles) {
	tokens, err := k.keys.Strings("tokenizer.ggml.tokens")
	if err != nil {
		return // there are none, or none that can be read, which others say
	}
	kind, _, _ := k.keys.OptText("tokenizer.ggml.model")
	differ, compared, first := 0, 0, ""
	for id, token := range tokens {
		texts := v.texts[int64(id)]
		if len(texts) == 0 {
			continue // filled up
		}
		compared++
		if isToken(token, texts, kind == "bert") {
			continue
		}
		if differ++; differ == 1 {
			first = fmt.Sprintf("token %d is %q, in the folder %q", id, token, texts[0])
		}
	}
	if differ > 0 {
		k.add("token-differs", "", "%d of %d tokens have other texts: %s", differ, compared, first).measured(float64(differ), 0)
	}
	k.compareMerges(v)
}

// compareMerges compares the merges of a BPE tokenizer.
func (k *keyCheck) compareMerges(v *vocabularyFiles) {
	kind, _, _ := k.keys.OptText("tokenizer.ggml.model")
	if kind != "gpt2" || len(v.merges) == 0 {
		return
	}
	merges, err := k.keys.Strings("tokenizer.ggml.merges")
	if err != nil {
		k.add("key-missing", "", "tokenizer.ggml.merges is not there; tokenizer.json has %d merges", len(v.merges))
		return
	}
	// A space in a part of a merge is written as the letter that stands for it in byte-level BPE.
	letter := strings.NewReplacer(" ", "\u0120")
	for i, merge := range v.merges {
		if i >= len(merges) || merges[i] != letter.Replace(merge[0])+" "+letter.Replace(merge[1]) {
			k.add("token-differs", "", "the file has %d merges, tokenizer.json %d; merge %d is another, %q there", len(merges), len(v.merges), i, merge)
			return
		}
	}
	if len(merges) > len(v.merges) {
		k.add("token-differs", "", "the file has %d merges, tokenizer.json %d", len(merges), len(v.merges))
	}
}

// surround is what the post-processor of tokenizer.json puts around texts.
type surround struct {
	known         bool
	tokens        []string // all of them
	front, behind string   // of a single text; "" for none
}

// around reads the post-processor.
func (v *vocabularyFiles) around() surround {
	var s surround
	post, ok, _ := v.fast.OptObject("post_processor")
	if !ok {
		return s
	}
	processors := []strictjson.Value{post.Value()}
	if items, ok, err := post.OptItems("processors"); err == nil && ok {
		processors = items
	}
	for _, p := range processors {
		o, err := p.Object()
		if err != nil {
			continue
		}
		switch kind, _ := o.String("type"); kind {
		case "RobertaProcessing", "BertProcessing":
			s.known, s.front, s.behind = true, firstText(o, "cls"), firstText(o, "sep")
			s.tokens = append(s.tokens, s.front, s.behind)
		case "TemplateProcessing":
			s.known = true
			s.template(o)
		}
	}
	return s
}

// firstText is the text of a pair of a text and an id.
func firstText(o *strictjson.Object, name string) string {
	pair, _, _ := o.OptItems(name)
	if len(pair) == 0 {
		return ""
	}
	text, _ := pair[0].Text() // no text is no token
	return text
}

func (s *surround) template(o *strictjson.Object) {
	for _, list := range []string{"single", "pair"} {
		parts, _, _ := o.OptItems(list)
		for i, part := range parts {
			text, special := specialIn(part)
			if !special {
				continue
			}
			s.tokens = append(s.tokens, text)
			switch {
			case list != "single":
			case i == 0:
				s.front = text
			case i == len(parts)-1:
				s.behind = text
			}
		}
	}
}

// specialIn is the special token of a part of a template.
func specialIn(part strictjson.Value) (string, bool) {
	o, err := part.Object()
	if err != nil {
		return "", false
	}
	special, ok, err := o.OptObject("SpecialToken")
	if err != nil || !ok {
		return "", false
	}
	text, err := special.String("id")
	return text, err == nil
}

// mayBe reports whether a text is the special token of a kind, or may be where the file does
// not say which it is.
func (k *keyCheck) mayBe(kind, text string) bool {
	id, ok, err := k.keys.OptInt("tokenizer.ggml." + kind + "_token_id")
	if !ok || err != nil {
		return true
	}
	is, ok := k.token(id)
	return ok && is == text
}

// compareAdding compares whether a text is given a token in front or behind. Settings and
// post-processor contradict each other too; the file must agree with one of them.
func (k *keyCheck) compareAdding(v *vocabularyFiles) {
	around := v.around()
	kind, _, _ := k.keys.OptText("tokenizer.ggml.model")
	pre, _, _ := k.keys.OptText("tokenizer.ggml.pre")
	for _, end := range []struct {
		kind      string
		template  string
		otherwise bool // what llama.cpp does if the file does not say
	}{{"bos", around.front, kind == "llama" || kind == "gpt2" && tokenizer.PreAddsBOS(pre)}, {"eos", around.behind, false}} {
		var wanted []bool
		if add, ok, err := v.config.OptBool("add_" + end.kind + "_token"); err == nil && ok {
			wanted = append(wanted, add)
		}
		if around.known {
			wanted = append(wanted, end.template != "" && k.mayBe(end.kind, end.template))
		}
		key := "tokenizer.ggml.add_" + end.kind + "_token"
		is, ok, err := k.keys.OptBool(key)
		if !ok || err != nil {
			if is = end.otherwise; kind != "llama" && kind != "gpt2" {
				continue
			}
			key += " (not stated)"
		}
		if len(wanted) > 0 && !slices.Contains(wanted, is) {
			k.add("key-differs", "", "%s is %v, by the folder's tokenizer it is %v", key, is, !is)
		}
	}
}
