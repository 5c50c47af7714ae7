package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/internal/strictjson"
)

// maxTokenizer bounds the files of a tokenizer; the largest are a fifth of it.
const maxTokenizer = 256 << 20

// checkVocabulary compares the rows of the embedding with the ids that the
// tokenizer can return.
func checkVocabulary(_ context.Context, s *subject) error {
	rows, ok := s.embeddingRows()
	if !ok {
		return nil
	}
	ids, source, err := s.tokenizerIDs()
	if err != nil {
		s.add("tokenizer-unreadable", "", "%v", err)
		return nil
	}
	switch {
	case ids == 0:
	case rows < ids:
		s.add("vocabulary-short", "", "the embedding has %d rows, %s has ids up to %d", rows, source, ids-1).measured(float64(rows), float64(ids))
	case rows > ids:
		s.add("vocabulary-padded", "", "the embedding has %d rows, %s needs %d", rows, source, ids).measured(float64(rows), float64(ids))
	}
	return nil
}

// embeddingRows returns the size of the input embedding.
func (s *subject) embeddingRows() (int64, bool) {
	if s.model.GGUF() != nil {
		spec, ok := s.model.Lookup("token_embd.weight")
		return spec.Rows(), ok
	}
	if !s.isModel() {
		return 0, false
	}
	names := func(yield func(string) bool) {
		for _, spec := range s.model.Specs() {
			if !yield(spec.Name) {
				return
			}
		}
	}
	embedding, _, ok := arch.Embeddings(names, s.config.Architecture())
	if !ok {
		return 0, false
	}
	spec, _ := s.model.Lookup(embedding)
	return spec.Rows(), len(spec.Shape) == 2
}

// tokenizerIDs returns one more than the largest id of the tokenizer and the file
// that says so; 0 without one. tokenizer.json is what transformers reads first.
func (s *subject) tokenizerIDs() (ids int64, source string, err error) {
	if set := s.model.GGUF(); set != nil {
		tokens, ok := set.Metadata().Get("tokenizer.ggml.tokens")
		if !ok {
			return 0, "", nil
		}
		return int64(tokens.Len()), "the tokenizer", nil
	}
	for _, f := range []struct {
		name  string
		count func([]byte) (int64, error)
	}{
		{"tokenizer.json", countTokenizerJSON}, {"vocab.json", countVocabulary}, {"tokenizer.model", countSentencePieces},
	} {
		data, ok, err := s.sideFile(f.name, maxTokenizer)
		if err != nil || !ok {
			if err != nil {
				return 0, "", err
			}
			continue
		}
		ids, err := f.count(data)
		if err != nil {
			return 0, "", fmt.Errorf("%s: %w", f.name, err)
		}
		if f.name == "tokenizer.json" {
			return ids, f.name, nil
		}
		added, err := s.addedIDs()
		return max(ids, added), f.name, err
	}
	return 0, "", nil
}

// addedIDs reads added_tokens.json, which belongs to the older tokenizers.
func (s *subject) addedIDs() (int64, error) {
	const name = "added_tokens.json"
	data, ok, err := s.sideFile(name, maxSideFile)
	if err != nil || !ok {
		return 0, err
	}
	ids, err := countVocabulary(data)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return ids, nil
}

// countTokenizerJSON returns one more than the largest id of a tokenizer.json: of
// model.vocab, an object from token to id or a list, and of added_tokens. It keeps
// no tree of the file.
func countTokenizerJSON(data []byte) (int64, error) {
	w := &walker{scanner: strictjson.NewScanner(data)}
	err := w.object(func(key string) error {
		switch key {
		case "model":
			return w.object(func(key string) error {
				if key == "vocab" {
					return w.vocabulary()
				}
				return w.skip()
			})
		case "added_tokens":
			return w.list(func() error {
				return w.object(func(key string) error {
					if key == "id" {
						return w.id()
					}
					return w.skip()
				})
			})
		}
		return w.skip()
	})
	return w.ids, w.end(err)
}

// countVocabulary does the same for a file that is one object from token to id.
func countVocabulary(data []byte) (int64, error) {
	w := &walker{scanner: strictjson.NewScanner(data)}
	return w.ids, w.end(w.vocabulary())
}

// walker goes through a JSON text once.
type walker struct {
	scanner *strictjson.Scanner
	token   strictjson.Token // read ahead, if ahead
	ahead   bool
	ids     int64
}

var errShape = errors.New("it is not laid out as a tokenizer")

func (w *walker) next() (strictjson.Token, error) {
	if w.ahead {
		w.ahead = false
		return w.token, nil
	}
	return w.scanner.Next()
}

func (w *walker) back(t strictjson.Token) { w.token, w.ahead = t, true }

// object calls f at the value of each member. What is no object is skipped.
func (w *walker) object(f func(key string) error) error {
	t, err := w.next()
	if err != nil {
		return err
	}
	if t.Kind != strictjson.KindObject {
		w.back(t)
		return w.skip()
	}
	for {
		t, err := w.next()
		if err != nil || t.Kind == strictjson.KindObjectEnd {
			return err
		}
		if err := f(string(t.Text)); err != nil {
			return err
		}
	}
}

// list calls f at each item. What is no list is skipped.
func (w *walker) list(f func() error) error {
	t, err := w.next()
	if err != nil {
		return err
	}
	if t.Kind != strictjson.KindArray {
		w.back(t)
		return w.skip()
	}
	for {
		t, err := w.next()
		if err != nil || t.Kind == strictjson.KindArrayEnd {
			return err
		}
		w.back(t)
		if err := f(); err != nil {
			return err
		}
	}
}

// vocabulary takes the ids of an object, or counts the items of a list.
func (w *walker) vocabulary() error {
	t, err := w.next()
	if err != nil {
		return err
	}
	w.back(t)
	if t.Kind == strictjson.KindArray {
		count := int64(0)
		err := w.list(func() error {
			count++
			return w.skip()
		})
		w.ids = max(w.ids, count)
		return err
	}
	return w.object(func(string) error { return w.id() })
}

// maxID bounds an id from a file.
const maxID = 1 << 40

func (w *walker) id() error {
	t, err := w.next()
	if err != nil {
		return err
	}
	id, perr := strconv.ParseInt(string(t.Text), 10, 64)
	if t.Kind != strictjson.KindNumber || perr != nil || id < 0 || id > maxID {
		return errShape
	}
	w.ids = max(w.ids, id+1)
	return nil
}

// skip goes over one value.
func (w *walker) skip() error {
	for depth := 0; ; {
		t, err := w.next()
		switch {
		case err != nil:
			return err
		case t.Kind == strictjson.KindArray, t.Kind == strictjson.KindObject:
			depth++
		case t.Kind == strictjson.KindArrayEnd, t.Kind == strictjson.KindObjectEnd:
			depth--
		case t.Kind == strictjson.KindKey:
			continue
		}
		if depth <= 0 {
			return nil
		}
	}
}

// end reads to the end of the text, which is only then known to be valid.
func (w *walker) end(err error) error {
	if err != nil {
		return err
	}
	_, err = w.next()
	return err
}

// countSentencePieces counts the pieces of a sentencepiece model: the messages in
// field 1 of a protocol buffer (sentencepiece_model.proto).
func countSentencePieces(data []byte) (int64, error) {
	const pieces, lengthDelimited = 1, 2
	count := int64(0)
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		if n <= 0 {
			return 0, errShape
		}
		data = data[n:]
		size := uint64(0)
		switch tag & 7 {
		case 0: // a number
			_, n := binary.Uvarint(data)
			if n <= 0 {
				return 0, errShape
			}
			size = uint64(n)
		case 1:
			size = 8
		case lengthDelimited:
			length, n := binary.Uvarint(data)
			if n <= 0 {
				return 0, errShape
			}
			data, size = data[n:], length
			if tag>>3 == pieces {
				count++
			}
		case 5:
			size = 4
		default:
			return 0, errShape
		}
		if size > uint64(len(data)) {
			return 0, errShape
		}
		data = data[size:]
	}
	return count, nil
}
