package tokenizer

import (
	"fmt"

	"github.com/loratool/loratool/internal/strictjson"
)

// Fast is a tokenizer.json.
type Fast struct {
	Model  string             // type of the model: "BPE", "WordPiece", "Unigram"; empty where the file has none
	Vocab  map[int64]string   // tokens of the model, by id
	Merges [][2]string        // of BPE
	Added  []AddedToken       // in the order of the file
	Root   *strictjson.Object // the rest of the file
	ids    map[string]int     // of the tokens in Vocab
	// ByteFallback says that what has no token becomes tokens of bytes, as in
	// SentencePiece.
	ByteFallback bool
}

// AddedToken is a token that is found in the text before the model sees it.
type AddedToken struct {
	ID                  int64
	Content             string
	Special, Normalized bool
	// LStrip and RStrip take the spaces before and after with it; SingleWord passes over it
	// inside of words.
	LStrip, RStrip, SingleWord bool
}

// ParseFast reads a tokenizer.json. What may have hundreds of thousands of entries is not
// in the tree of Root: the vocabulary of a model that is an object, and the merges.
func ParseFast(data []byte) (*Fast, error) {
	f := &Fast{Vocab: make(map[int64]string), ids: make(map[string]int)}
	root, err := strictjson.ParsePythonObjectExcept(data, map[string]strictjson.Taker{
		"model.vocab":  {Member: f.takeToken},
		"model.merges": {Item: f.takeMerge},
	})
	if err != nil {
		return nil, err
	}
	f.Root = root
	if err := f.readAdded(root); err != nil {
		return nil, err
	}
	model, ok, err := root.OptObject("model")
	if err != nil || !ok {
		return f, err
	}
	if f.Model, _, err = model.OptString("type"); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if f.ByteFallback, _, err = model.OptBool("byte_fallback"); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if f.Model == "BPE" || f.Model == "WordPiece" {
		if _, err := model.Object("vocab"); err != nil {
			return nil, fmt.Errorf("model: %w", err)
		}
		if _, _, err := model.OptItems("merges"); err != nil {
			return nil, fmt.Errorf("model: %w", err)
		}
	}
	return f, nil
}

// takeToken reads an entry of the vocabulary.
func (f *Fast) takeToken(token string, v strictjson.Value) error {
	id, err := v.Int()
	if err != nil {
		return fmt.Errorf("model: vocab: token %q: %w", token, err)
	}
	if id < 0 || id >= maxPieces {
		return fmt.Errorf("model: vocab: token %q has the id %d", token, id)
	}
	if other, ok := f.Vocab[id]; ok {
		return fmt.Errorf("model: vocab: the id %d is that of %q and of %q", id, other, token)
	}
	f.Vocab[id], f.ids[token] = token, int(id)
	return nil
}

// takeMerge reads a merge. Its parts are the strings of the vocabulary, if that came first.
func (f *Fast) takeMerge(i int, v strictjson.Value) error {
	pair, err := parseMerge(v)
	if err != nil {
		return fmt.Errorf("model: merge %d: %w", i, err)
	}
	for j, part := range pair {
		if id, ok := f.ids[part]; ok {
			pair[j] = f.Vocab[int64(id)]
		}
	}
	f.Merges = append(f.Merges, pair)
	return nil
}

// parseMerge reads "a b", or ["a", "b"] as newer files have it.
func parseMerge(v strictjson.Value) ([2]string, error) {
	if v.Kind() == strictjson.KindString {
		text, err := v.Text()
		if err != nil {
			return [2]string{}, err
		}
		for i := range len(text) {
			if text[i] == ' ' {
				return [2]string{text[:i], text[i+1:]}, nil
			}
		}
		return [2]string{}, fmt.Errorf("%q is no pair", text)
	}
	parts, err := v.Strings()
	if err != nil {
		return [2]string{}, err
	}
	if len(parts) != 2 {
		return [2]string{}, fmt.Errorf("%d parts, want 2", len(parts))
	}
	return [2]string{parts[0], parts[1]}, nil
}

func (f *Fast) readAdded(root *strictjson.Object) error {
	items, ok, err := root.OptItems("added_tokens")
	if err != nil || !ok {
		return err
	}
	for i, item := range items {
		o, err := item.Object()
		if err != nil {
			return fmt.Errorf("added token %d: %w", i, err)
		}
		var t AddedToken
		if t.ID, err = o.Int("id"); err == nil {
			t.Content, err = o.String("content")
		}
		for _, flag := range []struct {
			key string
			set *bool
		}{{"special", &t.Special}, {"normalized", &t.Normalized}, {"lstrip", &t.LStrip}, {"rstrip", &t.RStrip}, {"single_word", &t.SingleWord}} {
			if err == nil {
				*flag.set, _, err = o.OptBool(flag.key)
			}
		}
		if err != nil {
			return fmt.Errorf("added token %d: %w", i, err)
		}
		if t.ID < 0 || t.ID >= maxPieces {
			return fmt.Errorf("added token %q has the id %d", t.Content, t.ID)
		}
		f.Added = append(f.Added, t)
	}
	return nil
}
