package convert

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file makes the vocabulary of a SentencePiece model of which there is only the form
// of the tokenizers library: BPE over characters, with tokens of bytes for what has none.

// fallbackPieces takes types and order from where the converter does (llama.cpp,
// gguf-py/gguf/vocab.py, LlamaHfVocab), and scores from the merges. The converter gives
// all tokens the same score; a runtime then merges from left to right, not in the order
// of the merges, and splits text in other ways than the model has learned.
func (g *ggufPlanner) fallbackPieces(fast *tokenizer.Fast, config *strictjson.Object) error {
	if fast.Model != "BPE" {
		return g.inFile(fastFile, fmt.Errorf("the model is %q; BPE can be converted", fast.Model))
	}
	prefix, err := spacesMarked(fast.Root)
	if err != nil {
		return g.inFile(fastFile, err)
	}
	added, err := g.addedTokens(fast, config)
	if err != nil {
		return err
	}
	highest := int64(len(fast.Vocab)) - 1
	for id := range added {
		highest = max(highest, id)
	}
	size, err := g.intOr(highest+1, "vocab_size")
	if err != nil {
		return err
	}
	if err := g.checkSize(highest, size); err != nil {
		return err
	}
	scores, other := mergeScores(fast)
	v := &vocabulary{kind: "llama", pre: "default"}
	for id := range size {
		token, known := fast.Vocab[id]
		kind, score := int32(tokenNormal), float32(addedScore)
		if known {
			score = scores[id]
		}
		if t, ok := added[id]; ok {
			if !known {
				kind = tokenUserDefined
			}
			if token, known = t.Content, true; t.Special {
				kind, score = tokenControl, addedScore
			}
		}
		switch {
		case !known:
			token, kind, score = fmt.Sprintf("[PAD%d]", id), tokenUnused, paddingScore
		case isByteToken(token):
			kind, score = tokenByte, addedScore
		}
		v.tokens, v.types, v.scores = append(v.tokens, token), append(v.types, kind), append(v.scores, score)
	}
	why := fmt.Sprintf("%s has no scores: they follow the order of its merges, as the tokenizers library does (llama.cpp's converter gives all the same)", fastFile)
	if len(other) > 0 {
		const shown = 3
		why += fmt.Sprintf("; a runtime may build %d tokens in ways or in an order that it does not list, and then splits text otherwise, %q; the %s would tell",
			len(other), other[:min(len(other), shown)], sentencePieceFile)
	}
	g.decide("token-scores", why)
	g.vocab = v
	v.special, err = g.specialTokens(defaultSpecials, size, fast, config)
	if err == nil && !prefix {
		v.special.spacePrefix = &prefix
	}
	return err
}

// checkSize refuses a tokenizer that has more tokens than the embedding by config.json.
func (g *ggufPlanner) checkSize(highest, size int64) error {
	if highest >= size || size > maxTokens {
		return g.errorf("its tokenizer has ids up to %d, config.json a vocab_size of %d: resize the embedding to all tokens and set vocab_size to its rows", highest, size)
	}
	return nil
}

// isByteToken reports whether a token has the form <0x0A>.
func isByteToken(token string) bool {
	const hex = "0123456789ABCDEFabcdef"
	return len(token) == len("<0x0A>") && strings.HasPrefix(token, "<0x") && strings.HasSuffix(token, ">") && strings.Trim(token[3:5], hex) == ""
}

// mergeScores are the scores with which a SentencePiece model merges in the order of a
// BPE model, by ids: the n-th token that a merge makes has -n, what no merge makes comes
// last. It names the tokens that SentencePiece can build in more ways, as it knows only
// tokens and no merges, and those whose merges are not behind each other.
func mergeScores(fast *tokenizer.Fast) (scores map[int64]float32, other []string) {
	ids := make(map[string]int64, len(fast.Vocab))
	scores = make(map[int64]float32, len(fast.Vocab))
	for id, token := range fast.Vocab {
		ids[token] = id
		scores[id] = float32(-len(fast.Vocab))
	}
	listed := make(map[[2]string]bool, len(fast.Merges))
	order, last := 0, ""
	made := make(map[string]bool, len(fast.Vocab))
	for _, m := range fast.Merges {
		token := m[0] + m[1]
		listed[m] = true
		id, ok := ids[token]
		switch {
		case !ok, token == last:
		case made[token]:
			other = append(other, token)
		default:
			scores[id] = float32(-order)
			order++
			made[token] = true
		}
		last = token
	}
	for id := range int64(len(fast.Vocab)) {
		token := fast.Vocab[id]
		for i := range token {
			if i == 0 || isByteToken(token) {
				continue
			}
			_, left := ids[token[:i]]
			_, right := ids[token[i:]]
			if left && right && !listed[[2]string{token[:i], token[i:]}] && utf8.ValidString(token) {
				other = append(other, token)
				break
			}
		}
	}
	return scores, other
}

// spacesMarked finds out whether a text gets a space in front, and refuses what
// SentencePiece does not do to a text: it marks spaces, and nothing else.
func spacesMarked(root *strictjson.Object) (prefix bool, err error) {
	var steps []*strictjson.Object
	for _, part := range []struct{ name, list string }{{"normalizer", "normalizers"}, {"pre_tokenizer", "pretokenizers"}} {
		o, ok, err := root.OptObject(part.name)
		if err != nil {
			return false, err
		}
		if !ok {
			continue
		}
		items, several, err := o.OptItems(part.list)
		if err != nil {
			return false, err
		}
		if !several {
			steps = append(steps, o)
		}
		for _, item := range items {
			inner, err := item.Object()
			if err != nil {
				return false, fmt.Errorf("%s: %w", part.name, err)
			}
			steps = append(steps, inner)
		}
	}
	for _, o := range steps {
		kind, err := o.String("type")
		if err != nil {
			return false, err
		}
		front, known := marksSpaces(kind, o)
		if !known {
			return false, fmt.Errorf("text goes through %s, which a GGUF file of SentencePiece can't say: put the %s it was made from beside it", kind, sentencePieceFile)
		}
		prefix = prefix || front
	}
	return prefix, nil
}

// marksSpaces reports whether a step puts a space in front, and whether it is one that
// SentencePiece has.
func marksSpaces(kind string, o *strictjson.Object) (front, known bool) {
	const mark = "\u2581"
	text := func(name string) string { s, _, _ := o.OptString(name); return s }
	switch kind {
	case "Prepend":
		return true, text("prepend") == mark
	case "Replace":
		pattern, _, _ := o.OptObject("pattern")
		if pattern == nil {
			return false, false
		}
		from, _, _ := pattern.OptString("String")
		return false, from == " " && text("content") == mark
	case "Metaspace":
		scheme, stated, _ := o.OptString("prepend_scheme")
		if !stated {
			front, stated, _ = o.OptBool("add_prefix_space")
			return front || !stated, text("replacement") == mark
		}
		return scheme != "never", text("replacement") == mark
	}
	return false, false
}
