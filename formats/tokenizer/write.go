package tokenizer

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/strictjson"
)

// This file writes the tokenizer.json, and the tokenizer.model, that a vocabulary of a
// GGUF file comes from: as far as the file says, and by llama.cpp's rules where it says
// nothing (llama.cpp 0.5, src/llama-vocab.cpp).

// Vocabulary is a tokenizer as GGUF has it.
type Vocabulary struct {
	Tokens []string
	Types  []PieceType
	Scores []float32   // of SentencePiece models
	Merges [][2]string // of BPE over bytes
	Pre    string      // of BPE over bytes: the pre-tokenizer by llama.cpp's name
	// Before and After are the ids that are put around a text.
	Before, After []int
	Special       []int // ids that are special whatever their type says
	// SpacePrefix puts a space in front of a text, of SentencePiece models.
	SpacePrefix bool
	// Words is set of WordPiece models, whose tokens are those of tokenizer.json: they say
	// where a word goes on.
	Words *Words
}

// Words is how a WordPiece model changes words before it cuts them.
type Words struct {
	Lowercase    bool
	StripAccents *bool // nil: if it makes them lower case
}

// preAliases are pre-tokenizers that split as one of preTokenizers does.
var preAliases = map[string]string{
	"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "falcon-h1": "llama-bpe", "pixtral": "llama-bpe",
	"midm-2.0": "llama-bpe", "lfm2": "llama-bpe", "jina-v5-nano": "llama-bpe",
	"dbrx": "smaug-bpe", "glm4": "smaug-bpe", "chatglm-bpe": "smaug-bpe",
	"deepseek-r1-qwen": "qwen2", "kormo": "qwen2", "f2llmv2": "qwen2", "megrez": "qwen2", "stablelm2": "qwen2", "hunyuan": "qwen2",
	"solar-open": "qwen2", "grok-2": "qwen2",
	"refact": "starcoder", "command-r": "starcoder", "smollm": "starcoder", "codeshell": "starcoder", "exaone": "starcoder",
	"minerva-7b": "starcoder", "mellum2": "starcoder",
	"phi-2": "gpt-2", "jina-es": "gpt-2", "jina-de": "gpt-2", "gigachat": "gpt-2", "jina-v2-es": "gpt-2", "jina-v2-de": "gpt-2",
	"a.x-4.0": "gpt-2", "mellum": "gpt-2", "modern-bert": "gpt-2", "exaone4": "gpt-2", "mpt": "gpt-2", "olmo": "gpt-2", "jais": "gpt-2",
	"trillion": "gpt-2", "granite-docling": "gpt-2",
	"jina-v1-en": "gpt-2", "jina-v2-code": "gpt-2", "roberta-bpe": "gpt-2",
	"joyai-llm": "deepseek-v3", "hunyuan-dense": "deepseek-v3", "hy_v4": "deepseek-v3", "bailingmoe2": "bailingmoe", "cohere2moe": "tiny_aya",
	"llama4": "gpt-4o", "kanana2": "gpt-4o", "talkie": "gpt-4o", "minimax-m2": "gpt-4o",
}

// preTraits are what a name of a pre-tokenizer means beside its expressions: words that
// are tokens are not merged, a text begins with the beginning token, and, which llama.cpp
// leaves out, characters are composed first.
type preTraits struct{ wholeWords, addBOS, composed bool }

var traitsOf = map[string]preTraits{
	"llama-bpe": {wholeWords: true, addBOS: true},
	"tekken":    {wholeWords: true, addBOS: true},
	"qwen2":     {composed: true},
	"qwen35":    {composed: true},
}

// basePre finds the entry of preTokenizers that a name stands for.
func basePre(name string) (string, bool) {
	base := name
	if alias, ok := preAliases[name]; ok {
		base = alias
	}
	_, ok := stepsOfPre(base)
	return base, ok
}

// stepsOfPre are the steps of a pre-tokenizer. Smaug has those of Llama 3 with other
// traits.
func stepsOfPre(base string) ([]string, bool) {
	if base == "smaug-bpe" {
		base = "llama-bpe"
	}
	i := slices.IndexFunc(preTokenizers, func(p struct {
		name  string
		steps []string
	}) bool {
		return p.name == base
	})
	if i < 0 {
		return nil, false
	}
	return preTokenizers[i].steps, true
}

// KnowsPre reports whether [Vocabulary.Fast] can write a pre-tokenizer of llama.cpp.
func KnowsPre(name string) bool { _, ok := basePre(name); return ok }

// PreAddsBOS reports whether llama.cpp begins texts with the beginning token unless the
// file says otherwise.
func PreAddsBOS(name string) bool { base, _ := basePre(name); return traitsOf[base].addBOS }

// check refuses what no tokenizer.json can say.
func (v *Vocabulary) check() error {
	if len(v.Types) != len(v.Tokens) || v.Scores != nil && len(v.Scores) != len(v.Tokens) {
		return &FormatError{-1, fmt.Sprintf("%d tokens with %d types and %d scores", len(v.Tokens), len(v.Types), len(v.Scores))}
	}
	ids := make(map[string]int, len(v.Tokens))
	for id, token := range v.Tokens {
		if !utf8.ValidString(token) {
			return &FormatError{-1, fmt.Sprintf("token %d is not UTF-8: %q", id, token)}
		}
		if v.isFiller(id) {
			continue
		}
		if other, ok := ids[token]; ok {
			return &FormatError{-1, fmt.Sprintf("tokens %d and %d are both %q", other, id, token)}
		}
		ids[token] = id
	}
	for _, list := range [][]int{v.Before, v.After, v.Special} {
		for _, id := range list {
			if id < 0 || id >= len(v.Tokens) {
				return &FormatError{-1, fmt.Sprintf("a special token has the id %d, there are %d tokens", id, len(v.Tokens))}
			}
		}
	}
	for i, m := range v.Merges {
		for _, part := range []string{m[0], m[1], m[0] + m[1]} {
			if _, ok := ids[part]; !ok {
				return &FormatError{-1, fmt.Sprintf("merge %d is of %q and %q, but %q is no token", i, m[0], m[1], part)}
			}
		}
	}
	return nil
}

// isFiller reports whether an id has no token: converters put [PADn] in its place.
func (v *Vocabulary) isFiller(id int) bool {
	return v.Types[id] == Unused && v.Tokens[id] == "[PAD"+strconv.Itoa(id)+"]"
}

// isAdded reports whether a token is found in the text before the model sees it, and
// whether it is special.
func (v *Vocabulary) isAdded(id int) (added, special bool) {
	switch v.Types[id] {
	case Control, Unknown:
		return true, true
	case UserDefined:
		return true, false
	}
	special = slices.Contains(v.Special, id)
	return special, special
}

// Fast returns the text of a tokenizer.json: of a vocabulary with scores BPE with the
// merges that they amount to and bytes for what has no token, of one with words WordPiece,
// else BPE over bytes.
func (v *Vocabulary) Fast() ([]byte, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	b := []byte(`{"version":"1.0","truncation":null,"padding":null,"added_tokens":[`)
	first := true
	for id := range v.Tokens {
		added, special := v.isAdded(id)
		if !added || v.isFiller(id) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = fmt.Appendf(b, `{"id":%d,"content":`, id)
		b = strictjson.AppendQuoted(b, v.Tokens[id])
		b = fmt.Appendf(b, `,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":%v}`, special)
	}
	b = append(b, ']')
	var err error
	switch {
	case v.Words != nil:
		b = v.appendWords(b)
	case v.Scores != nil:
		b = v.appendPieces(b)
	default:
		b, err = v.appendBytePairs(b)
	}
	return append(b, "}\n"...), err
}

// appendWords writes the parts of a WordPiece model as BERT has them. A second text has
// only the token behind it.
func (v *Vocabulary) appendWords(b []byte) []byte {
	const longest = 100 // characters of a word that is looked at, in BERT; llama.cpp has no limit
	strip := "null"
	if v.Words.StripAccents != nil {
		strip = strconv.FormatBool(*v.Words.StripAccents)
	}
	b = fmt.Appendf(b, `,"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":%s,"lowercase":%v}`,
		strip, v.Words.Lowercase)
	b = append(b, `,"pre_tokenizer":{"type":"BertPreTokenizer"}`...)
	b = v.appendTemplate(b, false)
	b = append(b, `,"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":`...)
	b = strictjson.AppendQuoted(b, v.Tokens[max(slices.Index(v.Types, Unknown), 0)])
	b = fmt.Appendf(b, `,"continuing_subword_prefix":"##","max_input_chars_per_word":%d`, longest)
	return append(v.appendVocab(b), '}')
}

// appendPieces writes the parts of a SentencePiece model.
func (v *Vocabulary) appendPieces(b []byte) []byte {
	const escape = `{"type":"Replace","pattern":{"String":" "},"content":"▁"}`
	const decode = `{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"}`
	if v.SpacePrefix {
		b = append(b, `,"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},`+escape+`]},"pre_tokenizer":null`...)
	} else {
		b = append(b, `,"normalizer":`+escape+`,"pre_tokenizer":null`...)
	}
	b = v.appendTemplate(b, true)
	b = append(b, `,"decoder":{"type":"Sequence","decoders":[`+decode...)
	if v.SpacePrefix {
		b = append(b, `,{"type":"Strip","content":" ","start":1,"stop":0}`...)
	}
	b = append(b, `]},"model":{"type":"BPE","dropout":null,"unk_token":`...)
	if id := slices.Index(v.Types, Unknown); id >= 0 {
		b = strictjson.AppendQuoted(b, v.Tokens[id])
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"ignore_merges":false`...)
	return v.appendModel(b, v.mergesOfScores())
}

// appendBytePairs writes the parts of a BPE model over bytes.
func (v *Vocabulary) appendBytePairs(b []byte) ([]byte, error) {
	base, ok := basePre(v.Pre)
	if !ok {
		return nil, &UnknownPreError{[]string{fmt.Sprintf("the pre-tokenizer %q of llama.cpp", v.Pre)}}
	}
	normalizer := "null"
	if traitsOf[base].composed {
		normalizer = `{"type":"NFC"}`
	}
	b = append(b, `,"normalizer":`+normalizer+`,"pre_tokenizer":{"type":"Sequence","pretokenizers":[`...)
	steps, _ := stepsOfPre(base)
	for i, step := range steps {
		if i > 0 {
			b = append(b, ',')
		}
		switch step {
		case stepBytes, stepGPT2:
			b = fmt.Appendf(b, `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":%v}`, step == stepGPT2)
		case stepDigits:
			b = append(b, `{"type":"Digits","individual_digits":true}`...)
		default:
			b = append(b, `{"type":"Split","pattern":{"Regex":`...)
			b = strictjson.AppendQuoted(b, step)
			b = append(b, `},"behavior":"Isolated","invert":false}`...)
		}
	}
	b = append(b, `]}`...)
	b = v.appendTemplate(b, true)
	b = append(b, `,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}`...)
	b = append(b, `,"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false`...)
	b = fmt.Appendf(b, `,"byte_fallback":false,"ignore_merges":%v`, traitsOf[base].wholeWords)
	return v.appendModel(b, v.Merges), nil
}

// appendVocab writes the tokens.
func (v *Vocabulary) appendVocab(b []byte) []byte {
	b = append(b, `,"vocab":{`...)
	first := true
	for id, token := range v.Tokens {
		if v.isFiller(id) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = strictjson.AppendQuoted(b, token)
		b = append(b, ':')
		b = strconv.AppendInt(b, int64(id), 10)
	}
	return append(b, '}')
}

// appendModel writes tokens and merges, and ends the model.
func (v *Vocabulary) appendModel(b []byte, merges [][2]string) []byte {
	b = append(v.appendVocab(b), `,"merges":[`...)
	for i, m := range merges {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = strictjson.AppendQuoted(b, m[0])
		b = append(b, ',')
		b = strictjson.AppendQuoted(b, m[1])
		b = append(b, ']')
	}
	return append(b, `]}`...)
}

// appendTemplate writes what is put around a text. A second text may begin as the first.
func (v *Vocabulary) appendTemplate(b []byte, again bool) []byte {
	around := slices.Concat(v.Before, v.After)
	if len(around) == 0 {
		return append(b, `,"post_processor":null`...)
	}
	text := func(b []byte, sequence string, kind int) []byte {
		for _, id := range v.Before {
			if kind > 0 && !again {
				continue
			}
			b = append(b, `{"SpecialToken":{"id":`...)
			b = strictjson.AppendQuoted(b, v.Tokens[id])
			b = fmt.Appendf(b, `,"type_id":%d}},`, kind)
		}
		b = fmt.Appendf(b, `{"Sequence":{"id":"%s","type_id":%d}}`, sequence, kind)
		for _, id := range v.After {
			b = append(b, `,{"SpecialToken":{"id":`...)
			b = strictjson.AppendQuoted(b, v.Tokens[id])
			b = fmt.Appendf(b, `,"type_id":%d}}`, kind)
		}
		return b
	}
	b = append(b, `,"post_processor":{"type":"TemplateProcessing","single":[`...)
	b = append(text(b, "A", 0), `],"pair":[`...)
	b = append(text(append(text(b, "A", 0), ','), "B", 1), `],"special_tokens":{`...)
	slices.Sort(around)
	for i, id := range slices.Compact(around) {
		if i > 0 {
			b = append(b, ',')
		}
		token := strictjson.AppendQuoted(nil, v.Tokens[id])
		b = fmt.Appendf(b, `%s:{"id":%s,"ids":[%d],"tokens":[%s]}`, token, token, id, token)
	}
	return append(b, `}}`...)
}

// mergesOfScores are the merges that SentencePiece makes by its scores: every way to put a
// piece together of two others, the pieces with the highest score first, and of one piece
// those with the longer parts in front (transformers 5.23, convert_slow_tokenizer.py).
func (v *Vocabulary) mergesOfScores() [][2]string {
	ids := make(map[string]int, len(v.Tokens))
	for id, token := range v.Tokens {
		if v.Types[id] == Normal {
			ids[token] = id
		}
	}
	type merge struct {
		id          int // of the result
		cut         int // bytes of the left part
		left, right int // characters
	}
	var all []merge
	for id, token := range v.Tokens {
		if v.Types[id] != Normal {
			continue
		}
		length := utf8.RuneCountInString(token)
		from, n := len(all), 0
		for cut := range token {
			_, hasLeft := ids[token[:cut]]
			_, hasRight := ids[token[cut:]]
			if hasLeft && hasRight && cut > 0 {
				all = append(all, merge{id, cut, n, length - n})
			}
			n++
		}
		slices.SortStableFunc(all[from:], func(a, b merge) int {
			return cmp.Or(cmp.Compare(ids[token[:a.cut]], ids[token[:b.cut]]), cmp.Compare(ids[token[a.cut:]], ids[token[b.cut:]]))
		})
	}
	slices.SortStableFunc(all, func(a, b merge) int {
		return cmp.Or(cmp.Compare(v.Scores[b.id], v.Scores[a.id]), cmp.Compare(b.left, a.left), cmp.Compare(b.right, a.right))
	})
	merges := make([][2]string, len(all))
	for i, m := range all {
		token := v.Tokens[m.id]
		merges[i] = [2]string{token[:m.cut], token[m.cut:]}
	}
	return merges
}

// AddedScore is what converters give tokens that were added behind a SentencePiece model.
const AddedScore = -1000

// SentencePiece returns a tokenizer.model with the pieces that a model with scores had
// before tokens were added.
func (v *Vocabulary) SentencePiece() ([]byte, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	if v.Scores == nil {
		return nil, &FormatError{-1, "no scores: not the vocabulary of a SentencePiece model"}
	}
	count := len(v.Tokens)
	for count > 0 && (v.Scores[count-1] == AddedScore || v.isFiller(count-1)) {
		count--
	}
	var out []byte
	for id, token := range v.Tokens[:count] {
		piece := appendField(nil, fieldText, []byte(token))
		piece = append(piece, fieldScore<<3|wire32)
		piece = binary.LittleEndian.AppendUint32(piece, math.Float32bits(v.Scores[id]))
		piece = append(piece, fieldType<<3|wireVarint, byte(v.Types[id]))
		out = appendField(out, fieldPieces, piece)
	}
	out = appendField(out, fieldTrainer, v.trainer(count))
	return appendField(out, fieldNormalizer, v.normalizer()), nil
}

// The other fields that are written, of sentencepiece_model.proto.
const (
	fieldTrainer      = 2
	fieldNormalizer   = 3
	fieldModelType    = 3 // of TrainerSpec; 2 is BPE
	fieldVocabSize    = 4
	fieldByteFallback = 35
	fieldUnknownID    = 40
	fieldName         = 1 // of NormalizerSpec
	fieldDummyPrefix  = 3
	fieldExtraSpaces  = 4
)

// trainer says that the pieces are those of BPE.
func (v *Vocabulary) trainer(count int) []byte {
	const bpe = 2
	b := appendNumber(nil, fieldModelType, bpe)
	b = appendNumber(b, fieldVocabSize, uint64(count))
	if slices.Contains(v.Types, Byte) {
		b = appendNumber(b, fieldByteFallback, 1)
	}
	return appendNumber(b, fieldUnknownID, uint64(max(slices.Index(v.Types, Unknown), 0)))
}

// normalizer keeps text as it is, but for the space in front.
func (v *Vocabulary) normalizer() []byte {
	prefix := uint64(0)
	if v.SpacePrefix {
		prefix = 1
	}
	b := appendField(nil, fieldName, []byte("identity"))
	return appendNumber(appendNumber(b, fieldDummyPrefix, prefix), fieldExtraSpaces, 0)
}

func appendField(b []byte, field int, content []byte) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(len(content)))
	return append(b, content...)
}

func appendNumber(b []byte, field int, n uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(field)<<3|wireVarint), n)
}
