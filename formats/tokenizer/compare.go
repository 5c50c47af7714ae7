package tokenizer

import (
	"slices"
	"strings"
)

// Difference is a text that two tokenizers do not make the same ids of.
type Difference struct {
	Line int // of the sample, from 1; 0 is all of it
	Text string
	At   int // index of the first id that differs
	// Fast and Llama are some tokens from there on.
	Fast, Llama []string
}

// shownTokens is how many tokens a difference shows.
const shownTokens = 3

// Compare gives both tokenizers of a model the lines of [Sample], and the sample as a whole
// if no line tells them apart, without tokens around them. Lines with characters that there are no tokens for are left out. It
// returns what differs.
func Compare(e *Encoder, l *Llama) ([]Difference, error) {
	var all []Difference
	compare := func(line int, text string) error {
		if _, words := e.model.(*wordPiece); words {
			text = otherBlanks.Replace(text)
		}
		fast, err := e.Encode(text, false)
		if err != nil {
			return err
		}
		if e.loses(text, fast) {
			return nil // of characters without a token each library makes what it likes
		}
		llama, err := l.Encode(text, false, true)
		if err != nil {
			return err
		}
		at := 0
		for at < len(fast) && at < len(llama) && fast[at] == llama[at] {
			at++
		}
		if at < len(fast) || at < len(llama) {
			all = append(all, Difference{line, text, at, shown(fast[at:], e.Token), shown(llama[at:], l.Token)})
		}
		return nil
	}
	for i, line := range SampleLines() {
		if err := compare(i+1, line); err != nil {
			return nil, err
		}
	}
	if len(all) > 0 {
		return all, nil
	}
	return all, compare(0, Sample)
}

// otherBlanks takes out what BERT cleans away and llama.cpp splits words at (llama.cpp 0.5,
// unicode_cpt_flags: blanks), whatever the file says: no conversion can help it.
var otherBlanks = strings.NewReplacer("\v", "", "\f", "", "\u0085", "")

// loses reports whether a text has characters that there are no tokens for: they are unknown
// tokens or, where there is none, passed over.
func (e *Encoder) loses(text string, ids []int) bool {
	unknown := -1
	switch m := e.model.(type) {
	case *bpe:
		if m.unknown == "" {
			back, err := e.Decode(ids, true)
			return err != nil || back != text
		}
		unknown = m.vocab[m.unknown]
	case *wordPiece:
		unknown = m.vocab[m.unknown]
	case *wordLevel:
		unknown = m.vocab[m.unknown]
	case *unigram:
		unknown = m.unknown
	}
	return slices.Contains(ids, unknown)
}

// SampleLines are the lines of [Sample], each with its end.
func SampleLines() []string {
	lines := strings.SplitAfter(Sample, "\n")
	return lines[:len(lines)-1]
}

func shown(ids []int, token func(int) (string, bool)) []string {
	var texts []string
	for _, id := range ids[:min(len(ids), shownTokens)] {
		text, _ := token(id)
		texts = append(texts, text)
	}
	return texts
}
