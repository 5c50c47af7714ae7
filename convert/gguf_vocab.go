package convert

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// vocabulary is the tokenizer as GGUF has it.
type vocabulary struct {
	kind    string // tokenizer.ggml.model
	pre     string
	tokens  []string
	scores  []float32 // nil for BPE
	types   []int32
	merges  []string
	special *specials
	// segments are the types of positions that a WordPiece model tells apart: the first
	// text of a pair, the second one.
	segments uint32
}

// The types of tokens in GGUF.
const (
	tokenNormal      = 1
	tokenUnknown     = 2
	tokenControl     = 3
	tokenUserDefined = 4
	tokenUnused      = 5
	tokenByte        = 6
)

// The scores of tokens that no model has scored.
const (
	paddingScore = -10000
	addedScore   = -1000
)

// maxTokenizerFile bounds the files of a tokenizer; the largest have some 40 MB.
const maxTokenizerFile = 256 << 20

// file returns a file beside the weights; false if there is none.
func (g *ggufPlanner) file(name string) ([]byte, bool, error) {
	return g.source.SideFile(name, maxTokenizerFile)
}

// object returns a JSON file beside the weights, nil if there is none.
func (g *ggufPlanner) object(name string) (*strictjson.Object, error) {
	data, ok, err := g.file(name)
	if err != nil || !ok {
		return nil, err
	}
	o, err := strictjson.ParsePythonObject(data)
	return o, g.inFile(name, err)
}

// inFile names the file that an error is about.
func (g *ggufPlanner) inFile(name string, err error) error {
	if err == nil {
		return nil
	}
	return &checkpoint.InputError{Path: filepath.Join(g.source.Path, name), Err: err}
}

// The files of tokenizers.
const (
	sentencePieceFile   = "tokenizer.model"
	fastFile            = "tokenizer.json"
	tokenizerConfigFile = "tokenizer_config.json"
	addedTokensFile     = "added_tokens.json"
)

// readVocabulary reads the tokenizer in the form that the family's converter prefers.
func (g *ggufPlanner) readVocabulary() error {
	config, err := g.object(tokenizerConfigFile)
	if err != nil {
		return err
	}
	fast, err := g.readFast()
	if err != nil {
		return err
	}
	pieces, hasPieces, err := g.file(sentencePieceFile)
	if err != nil {
		return err
	}
	kind := g.tokenKind(fast, hasPieces, config)
	switch {
	case hasPieces && kind <= arch.PiecesOnly:
		err = g.sentencePieces(pieces, fast, config)
	case kind == arch.PiecesOnly:
		err = g.errorf("no %s: the tokenizer of this family can only be converted from it", sentencePieceFile)
	case fast == nil:
		err = g.errorf("no tokenizer: neither %s nor %s", sentencePieceFile, fastFile)
	case kind == arch.WordsOnly:
		err = g.wordPieces(fast, config)
	case fast.ByteFallback && g.family.Tokens.MadeScores:
		err = g.fallbackPieces(fast, config)
	case fast.ByteFallback:
		err = g.errorf("its %s is a SentencePiece model in the form of the tokenizers library: put the %s it was made from beside it", fastFile, sentencePieceFile)
	default:
		err = g.bytePairs(fast, config)
	}
	return err
}

// tokenKind settles what a family that has either takes: of the class of GPT-2, or without
// a tokenizer.model beside BPE over bytes, that.
func (g *ggufPlanner) tokenKind(fast *tokenizer.Fast, hasPieces bool, config *strictjson.Object) arch.TokenKind {
	kind := g.family.Tokens.Kind
	if kind != arch.PiecesOrGPT2 {
		return kind
	}
	if config != nil {
		if class, _ := config.String("tokenizer_class"); class == "GPT2Tokenizer" {
			return arch.BytesOnly
		}
	}
	if !hasPieces && fast != nil && fast.Model == "BPE" && !fast.ByteFallback {
		return arch.BytesOnly
	}
	return arch.PiecesOnly
}

func (g *ggufPlanner) readFast() (*tokenizer.Fast, error) {
	data, ok, err := g.file(fastFile)
	if err != nil || !ok {
		return nil, err
	}
	fast, err := tokenizer.ParseFast(data)
	return fast, g.inFile(fastFile, err)
}

// sentencePieces makes the vocabulary of a SentencePiece model: its pieces, then what
// was added, gaps up to vocab_size filled.
func (g *ggufPlanner) sentencePieces(data []byte, fast *tokenizer.Fast, config *strictjson.Object) error {
	pieces, err := tokenizer.ParseSentencePiece(data)
	if err != nil {
		return g.inFile(sentencePieceFile, err)
	}
	size, err := g.intOr(int64(len(pieces)), "vocab_size")
	if err != nil {
		return err
	}
	if size > maxTokens {
		return g.errorf("its config.json: vocab_size is %d", size)
	}
	v := &vocabulary{kind: "llama", pre: "default", scores: make([]float32, size), types: make([]int32, size), tokens: make([]string, size)}
	for i := range v.tokens {
		v.tokens[i], v.scores[i], v.types[i] = "[PAD"+strconv.Itoa(i)+"]", paddingScore, tokenUnused
	}
	for i, p := range pieces[:min(size, int64(len(pieces)))] {
		v.tokens[i], v.scores[i], v.types[i] = p.Text, p.Score, pieceTypes[p.Type]
	}
	beyond, err := g.addedPieces(v, fast, config)
	if err != nil {
		return err
	}
	if int64(len(pieces)) > size {
		beyond = append(beyond, fmt.Sprintf("%d pieces of %s", int64(len(pieces))-size, sentencePieceFile))
	}
	if len(beyond) > 0 {
		g.decide("tokens-left-out", fmt.Sprintf("config.json has a vocab_size of %d, which leaves no room for %s", size, strings.Join(beyond, ", ")))
	}
	g.vocab = v
	if v.special, err = g.specialTokens(defaultSpecials, size, fast, config); err == nil {
		g.spaceInFront(v.special, fast)
	}
	return err
}

// spaceInFront says what tokenizer.json does where tokenizer_config.json is silent: a runtime
// puts a space in front of a text unless the file says otherwise, and the converter looks at
// tokenizer_config.json alone.
func (g *ggufPlanner) spaceInFront(s *specials, fast *tokenizer.Fast) {
	if s.spacePrefix != nil || fast == nil || fast.Model == "" || !g.family.Tokens.MadeScores {
		return
	}
	front, err := spacesMarked(fast.Root)
	if err != nil || front { // of other steps it is not known
		return
	}
	s.spacePrefix = &front
	g.decide("space-prefix", fmt.Sprintf("%s puts no space in front of a text, and %s says nothing of it: the file says so (llama.cpp's converter does not)", fastFile, tokenizerConfigFile))
}

// maxTokens is far above any vocabulary.
const maxTokens = 1 << 24

// pieceTypes are the types of tokens by those of SentencePiece. What the user defined
// there is no different from other pieces.
var pieceTypes = map[tokenizer.PieceType]int32{
	tokenizer.Normal: tokenNormal, tokenizer.Unknown: tokenUnknown, tokenizer.Control: tokenControl,
	tokenizer.UserDefined: tokenNormal, tokenizer.Unused: tokenUnused, tokenizer.Byte: tokenByte,
}

// addedPieces puts the tokens in their places that were added behind a SentencePiece
// model, and names those that have none. The converter of Phi 3 looks into tokenizer.json
// too, and takes tokens as they are written.
func (g *ggufPlanner) addedPieces(v *vocabulary, fast *tokenizer.Fast, config *strictjson.Object) (beyond []string, err error) {
	added, err := g.object(addedTokensFile)
	if err != nil {
		return nil, err
	}
	place := func(id int64, token string, kind int32) {
		if id < 0 || id >= int64(len(v.tokens)) {
			beyond = append(beyond, fmt.Sprintf("%q (%d)", token, id))
			return
		}
		v.tokens[id], v.scores[id], v.types[id] = token, addedScore, kind
	}
	if added != nil {
		for token, value := range added.All() {
			id, err := value.Int()
			if err != nil {
				return nil, g.inFile(addedTokensFile, fmt.Errorf("token %q: %w", token, err))
			}
			place(id, token, tokenUserDefined)
		}
	}
	decoder, err := g.addedDecoder(config)
	if err != nil {
		return nil, err
	}
	literal := g.family.Tokens.Literal
	if literal && fast != nil {
		decoder = append(decoder, fast.Added...)
	}
	for _, t := range decoder {
		switch {
		case t.Special, !literal && looksSpecial(t.Content):
			place(t.ID, t.Content, tokenControl)
		case literal:
			place(t.ID, t.Content, tokenUserDefined)
		default:
			place(t.ID, strings.ReplaceAll(t.Content, "\u2581", " "), tokenUserDefined)
		}
	}
	return beyond, nil
}

// addedDecoder are the added tokens of tokenizer_config.json.
func (g *ggufPlanner) addedDecoder(config *strictjson.Object) ([]tokenizer.AddedToken, error) {
	if config == nil {
		return nil, nil
	}
	decoder, ok, err := config.OptObject("added_tokens_decoder")
	if err != nil || !ok {
		return nil, g.inFile(tokenizerConfigFile, err)
	}
	var all []tokenizer.AddedToken
	for key, value := range decoder.All() {
		var t tokenizer.AddedToken
		o, err := value.Object()
		if err == nil {
			t.ID, err = strconv.ParseInt(key, 10, 64)
		}
		if err == nil {
			t.Content, err = o.String("content")
		}
		if err == nil {
			t.Special, _, err = o.OptBool("special")
		}
		if err == nil {
			t.Normalized, _, err = o.OptBool("normalized")
		}
		if err != nil {
			return nil, g.inFile(tokenizerConfigFile, fmt.Errorf("added token %q: %w", key, err))
		}
		all = append(all, t)
	}
	return all, nil
}

// looksSpecial reports whether a token has the form of those that are never text, even
// where it is not marked so.
func looksSpecial(token string) bool {
	if slices.Contains([]string{"<pad>", "<mask>", "<2mass>", "[@BOS@]"}, token) {
		return true
	}
	for _, form := range [][2]string{{"<|", "|>"}, {"<｜", "｜>"}, {"<unused", ">"}} {
		if strings.HasPrefix(token, form[0]) && strings.HasSuffix(token, form[1]) {
			return true
		}
	}
	return false
}

// bytePairs makes the vocabulary of a BPE model over bytes.
func (g *ggufPlanner) bytePairs(fast *tokenizer.Fast, config *strictjson.Object) error {
	if fast.Model != "BPE" {
		return g.inFile(fastFile, fmt.Errorf("the model is %q; BPE can be converted", fast.Model))
	}
	v := &vocabulary{kind: "gpt2", pre: g.options.PreTokenizer}
	if err := g.preTokenizer(v, fast, config); err != nil {
		return err
	}
	if err := g.indexTokens(v, fast, config); err != nil {
		return err
	}
	for _, m := range fast.Merges {
		// A space in a part would be taken for the one between the parts.
		v.merges = append(v.merges, strings.ReplaceAll(m[0], " ", "\u0120")+" "+strings.ReplaceAll(m[1], " ", "\u0120"))
	}
	g.vocab = v
	var err error
	v.special, err = g.specialTokens(defaultSpecials, -1, fast, config)
	return err
}

// indexTokens lists the tokens of tokenizer.json by their ids, up to vocab_size.
func (g *ggufPlanner) indexTokens(v *vocabulary, fast *tokenizer.Fast, config *strictjson.Object) error {
	added, err := g.addedTokens(fast, config)
	if err != nil {
		return err
	}
	highest := int64(-1)
	for id := range fast.Vocab {
		highest = max(highest, id)
	}
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
	for id := range size {
		token, known := fast.Vocab[id]
		kind := int32(tokenNormal)
		if t, ok := added[id]; ok {
			token, kind, known = t.Content, tokenUserDefined, true
			if t.Special || looksSpecial(token) {
				kind = tokenControl
			} else {
				token = strings.ReplaceAll(token, "\u2581", " ")
			}
		}
		if !known {
			token, kind = "[PAD"+strconv.FormatInt(id, 10)+"]", tokenUnused
		}
		v.tokens, v.types = append(v.tokens, token), append(v.types, kind)
	}
	return nil
}

// addedTokens are the tokens beside the model's, by id: those of tokenizer.json, and
// those that only tokenizer_config.json has.
func (g *ggufPlanner) addedTokens(fast *tokenizer.Fast, config *strictjson.Object) (map[int64]tokenizer.AddedToken, error) {
	decoder, err := g.addedDecoder(config)
	if err != nil {
		return nil, err
	}
	if err := g.checkAdded(fast); err != nil {
		return nil, err
	}
	added := make(map[int64]tokenizer.AddedToken)
	for _, t := range slices.Concat(decoder, fast.Added) {
		if t.ID < 0 || t.ID >= maxTokens {
			return nil, g.inFile(tokenizerConfigFile, fmt.Errorf("added token %q has the id %d", t.Content, t.ID))
		}
		added[t.ID] = t
	}
	return added, g.markNamed(added, fast, config)
}

// markNamed marks the tokens that tokenizer_config.json names as the beginning, the end
// and so on: the tokenizers library takes them for special, whatever tokenizer.json says.
func (g *ggufPlanner) markNamed(added map[int64]tokenizer.AddedToken, fast *tokenizer.Fast, config *strictjson.Object) error {
	if config == nil {
		return nil
	}
	ids := make(map[string]int64, len(fast.Vocab)+len(added))
	for id, token := range fast.Vocab {
		ids[token] = id
	}
	for id, t := range added {
		ids[t.Content] = id
	}
	for _, kind := range defaultSpecials {
		text := tokenText(config, kind)
		if text == "" {
			continue
		}
		id, ok := ids[text]
		if !ok {
			return g.inFile(tokenizerConfigFile, fmt.Errorf("%s_token is %q, which is no token of %s: save the tokenizer again", kind, text, fastFile))
		}
		added[id] = tokenizer.AddedToken{ID: id, Content: text, Special: true}
	}
	return nil
}

// tokenText returns the text of a special token, which may be an object; empty without.
func tokenText(config *strictjson.Object, kind string) string {
	v, _ := config.Get(kind + "_token")
	if o, err := v.Object(); err == nil && !v.IsNull() {
		text, _ := o.String("content")
		return text
	}
	text, _ := v.Text()
	return text
}

// checkAdded refuses ids that the tokenizers library would not give: it numbers added
// tokens that the model does not have behind the model's, one by one, and looks at no id
// in the file (tokenizers 0.22, added_vocabulary.rs). Text would have other ids than the
// file says.
func (g *ggufPlanner) checkAdded(fast *tokenizer.Fast) error {
	ids := make(map[string]int64, len(fast.Vocab))
	for id, token := range fast.Vocab {
		ids[token] = id
	}
	size := int64(len(fast.Vocab))
	next := size
	for _, t := range fast.Added {
		given, ok := ids[t.Content]
		if !ok {
			given = next
			ids[t.Content] = given
		}
		if given >= size {
			next = max(next, given+1)
		}
		if given != t.ID {
			return g.inFile(fastFile, fmt.Errorf("added token %q has the id %d there, the tokenizers library gives it %d: save the tokenizer again", t.Content, t.ID, given))
		}
	}
	return nil
}

// vocabularyKeys writes the tokenizer.
func (g *ggufPlanner) vocabularyKeys() {
	const prefix = "tokenizer.ggml."
	v := g.vocab
	if v.segments > 0 {
		set(g, prefix+"token_type_count", v.segments)
	}
	traits := g.family.Tokens
	if traits.MadeScores && v.special.spacePrefix != nil {
		set(g, prefix+"add_space_prefix", *v.special.spacePrefix)
	}
	set(g, prefix+"model", v.kind)
	set(g, prefix+"pre", v.pre)
	g.keys.Set(prefix+"tokens", gguf.ArrayOf(v.tokens))
	if v.scores != nil {
		g.keys.Set(prefix+"scores", gguf.ArrayOf(v.scores))
	}
	g.keys.Set(prefix+"token_type", gguf.ArrayOf(v.types))
	if len(v.merges) > 0 {
		g.keys.Set(prefix+"merges", gguf.ArrayOf(v.merges))
	}
	v.special.write(g)
	if traits.EndOfTurn > 0 && !slices.ContainsFunc(v.special.ids, func(e specialID) bool { return e.kind == "eot" }) {
		set(g, prefix+"eot_token_id", uint32(traits.EndOfTurn))
	}
	if traits.NoSpace && v.kind == "llama" {
		set(g, prefix+"add_space_prefix", false)
	}
	if traits.MadeScores {
		g.llamaExtras(prefix)
	}
}

// llamaExtras are keys that the converter gives to single models, by the size of their
// vocabulary: Code Llama and the small Granites.
func (g *ggufPlanner) llamaExtras(prefix string) {
	const codeLlama, codeLlamaEnd, granite = 32016, 32010, 49152
	switch len(g.vocab.tokens) {
	case codeLlama:
		set(g, prefix+"eot_token_id", uint32(codeLlamaEnd))
	case granite:
		set(g, prefix+"add_bos_token", false)
	}
}
