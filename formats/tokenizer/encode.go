package tokenizer

import (
	"fmt"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/strictjson"
)

// UnsupportedError says what a tokenizer.json asks for that is not known here.
type UnsupportedError struct {
	Part string // of the file: "normalizer", "pre_tokenizer", "model", ...
	What string
}

func (e *UnsupportedError) Error() string { return e.Part + ": " + e.What }

// Encoder turns text into ids as a tokenizer.json says, the way the tokenizers library
// does (huggingface/tokenizers 0.23). It does not change and may be used by many at once.
//
// A text goes through five steps, each a part of the file: added tokens are cut out, the
// rest is normalized, split into words, each word becomes tokens of the model, and tokens
// are put around the whole. Classes of characters are those of Unicode 15; the library has
// newer tables for some steps and older ones for others. Lengths that the file asks for (truncation, padding) are left
// to the caller, as transformers leaves them.
type Encoder struct {
	raw, normal *tokenFinder // added tokens: of the text as it is, and of what is normalized
	normalize   normalizer
	split       splitter
	model       model
	around      *template
	vocab       map[int64]string     // tokens of the model by id
	added       map[int64]AddedToken // with their texts normalized, as they are found
	decode      decoder
}

// piece is a part of a text on its way through the steps.
type piece struct {
	text string
	// first says that the piece begins where the text began.
	first bool
	// id is that of an added token, -1 of what is still text.
	id int
}

// normalizer and splitter are steps; a splitter never returns empty pieces.
type (
	normalizer func(piece) (piece, error)
	splitter   func(piece) ([]piece, error)
)

// model turns one word into tokens.
type model interface {
	tokens(word string) ([]int, error)
}

// NewEncoder makes the encoder of a tokenizer.json; an [UnsupportedError] names what it
// can't do.
func NewEncoder(f *Fast) (*Encoder, error) {
	e := &Encoder{}
	var err error
	if e.normalize, err = partOf(f.Root, "normalizer", newNormalizer); err != nil {
		return nil, err
	}
	if e.split, err = partOf(f.Root, "pre_tokenizer", newSplitter); err != nil {
		return nil, err
	}
	if e.around, err = partOf(f.Root, "post_processor", newTemplate); err != nil {
		return nil, err
	}
	if e.decode, err = partOf(f.Root, "decoder", newDecoder); err != nil {
		return nil, err
	}
	vocab, err := e.readModel(f)
	if err != nil {
		return nil, err
	}
	return e, e.readAdded(f, vocab)
}

// partOf reads a part of a tokenizer.json that may be missing.
func partOf[T any](root *strictjson.Object, name string, read func(*config) (T, error)) (T, error) {
	var none T
	o, ok, err := root.OptObject(name)
	if err != nil || !ok {
		return none, err
	}
	c := &config{object: o, part: name}
	got, err := read(c)
	if c.err != nil {
		err = c.err
	}
	if err != nil {
		return none, err
	}
	return got, nil
}

// Encode returns the ids of a text, with the tokens that are put around it if special is
// set. Added tokens in the text are found either way.
func (e *Encoder) Encode(text string, special bool) ([]int, error) {
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("the text is not UTF-8")
	}
	pieces, err := e.pieces(text)
	if err != nil {
		return nil, err
	}
	ids := []int{}
	for _, p := range pieces {
		if p.id >= 0 {
			ids = append(ids, p.id)
			continue
		}
		words := []piece{p}
		if e.split != nil {
			if words, err = e.split(p); err != nil {
				return nil, err
			}
		}
		for _, w := range words {
			more, err := e.model.tokens(w.text)
			if err != nil {
				return nil, err
			}
			ids = append(ids, more...)
		}
	}
	if special && e.around != nil {
		ids = e.around.wrap(ids)
	}
	return ids, nil
}

// pieces cuts the added tokens out of a text and normalizes the rest.
func (e *Encoder) pieces(text string) ([]piece, error) {
	var all []piece
	for _, p := range e.raw.cut(piece{text: text, first: true, id: -1}) {
		if p.id >= 0 {
			all = append(all, p)
			continue
		}
		if e.normalize != nil {
			var err error
			if p, err = e.normalize(p); err != nil {
				return nil, err
			}
		}
		all = append(all, e.normal.cut(p)...)
	}
	return all, nil
}

// Token returns the text of a token as the vocabulary has it; an added one's as it is found
// in a text.
func (e *Encoder) Token(id int) (string, bool) {
	if t, ok := e.added[int64(id)]; ok {
		return t.Content, true
	}
	text, ok := e.vocab[int64(id)]
	return text, ok
}

// config reads the settings of one part of a tokenizer.json. The first error stays.
type config struct {
	object *strictjson.Object
	part   string
	depth  int
	err    error
}

func setting[T any](c *config, key string, usual T, read func(*strictjson.Object, string) (T, bool, error)) T {
	v, ok, err := read(c.object, key)
	if err != nil && c.err == nil {
		c.err = fmt.Errorf("%s: %w", c.part, err)
	}
	if !ok {
		return usual
	}
	return v
}

func (c *config) text(key string) string {
	return setting(c, key, "", (*strictjson.Object).OptString)
}

func (c *config) flag(key string, usual bool) bool {
	return setting(c, key, usual, (*strictjson.Object).OptBool)
}

func (c *config) number(key string, usual int64) int64 {
	return setting(c, key, usual, (*strictjson.Object).OptInt)
}

// unsupported says that the part asks for something that is not known.
func (c *config) unsupported(format string, args ...any) error {
	return &UnsupportedError{c.part, fmt.Sprintf(format, args...)}
}

// maxDepth is how deep sequences may lie in sequences.
const maxDepth = 20

// items reads the parts of a sequence.
func items[T any](c *config, key string, read func(*config) (T, error)) ([]T, error) {
	if c.depth == maxDepth {
		return nil, c.unsupported("sequences in sequences, %d deep", maxDepth)
	}
	values, err := c.object.Items(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.part, err)
	}
	var all []T
	for _, v := range values {
		o, err := v.Object()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.part, err)
		}
		inner := &config{object: o, part: c.part, depth: c.depth + 1}
		item, err := read(inner)
		if inner.err != nil {
			err = inner.err
		}
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}
