package convert

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file converts models of embeddings (llama.cpp, conversion/bert.py), alone or in a
// folder of sentence-transformers.

// poolingKey says how the embeddings of a text become one.
const poolingKey = "pooling_type"

// embeddingKeys say that tokens see what follows, and what follows the model.
func (g *ggufPlanner) embeddingKeys() error {
	param(g, "attention.causal", false)
	return g.poolingKeys()
}

// The files of sentence-transformers.
const (
	modulesFile = "modules.json"
	poolingFile = "config.json" // in the folder of the module
)

// poolingType is a number of GGUF, with the switch of older files and the name of newer
// ones.
type poolingType struct {
	flag, mode string
	number     uint32
}

var poolingTypes = []poolingType{
	{"pooling_mode_mean_tokens", "mean", 1},
	{"pooling_mode_cls_token", "cls", 2},
	{"pooling_mode_lasttoken", "lasttoken", 3},
}

// poolingKeys finds out what follows the model. A module that a runtime does not have is
// refused: the embeddings would be others.
func (g *ggufPlanner) poolingKeys() error {
	data, ok, err := g.file(modulesFile)
	if err != nil {
		return err
	}
	if !ok {
		g.decide("pooling", fmt.Sprintf("there is no %s: the file does not say how the embeddings of a text become one, the runtime has to be told", modulesFile))
		return nil
	}
	value, err := strictjson.Parse(data)
	var items []strictjson.Value
	if err == nil {
		items, err = value.Items()
	}
	if err != nil {
		return g.inFile(modulesFile, err)
	}
	for i, item := range items {
		module, err := item.Object()
		var kind, path string
		if err == nil {
			kind, err = module.String("type")
		}
		if err == nil {
			path, err = module.String("path")
		}
		if err != nil {
			return g.inFile(modulesFile, fmt.Errorf("module %d: %w", i, err))
		}
		switch name := kind[strings.LastIndex(kind, ".")+1:]; name {
		case "Transformer":
		case "Normalize":
			g.decide("normalize", "embeddings are of length 1 after the model's last module: a GGUF file has no place for it, the runtime does it when it is asked to")
		case "Pooling":
			if err := g.readPooling(path); err != nil {
				return err
			}
		default:
			return g.inFile(modulesFile, fmt.Errorf("module %d is %q, which no GGUF file of a model has; Transformer, Pooling and Normalize can be converted", i, kind))
		}
	}
	return nil
}

// readPooling reads the settings of a module.
func (g *ggufPlanner) readPooling(folder string) error {
	file := filepath.Join(folder, poolingFile)
	if !filepath.IsLocal(file) {
		return g.inFile(modulesFile, fmt.Errorf("the path %q leaves the folder", folder))
	}
	config, err := g.object(file)
	if err == nil && config == nil {
		err = g.inFile(file, errors.New("there is no such file"))
	}
	if err != nil {
		return err
	}
	var on []string // switches
	for key, v := range config.All() {
		if yes, err := v.Bool(); err == nil && yes && strings.HasPrefix(key, "pooling_mode_") {
			on = append(on, key)
		}
	}
	mode, _, err := config.OptString("pooling_mode")
	if err != nil {
		return g.inFile(file, err)
	}
	i := slices.IndexFunc(poolingTypes, func(t poolingType) bool {
		if len(on) == 0 {
			return t.mode == mode
		}
		return len(on) == 1 && t.flag == on[0]
	})
	if i < 0 {
		if mode != "" && len(on) == 0 {
			on = []string{mode}
		}
		return g.inFile(file, fmt.Errorf("the pooling is %q; one of mean, cls and lasttoken can be converted", strings.Join(on, ", ")))
	}
	param(g, poolingKey, poolingTypes[i].number)
	return nil
}

// The marks of tokens that go on with a word, in tokenizer.json, and that begin one, in GGUF.
const (
	wordContinued = "##"
	wordBegun     = "\u2581"
)

// wordPieces makes the vocabulary of a WordPiece model. Its tokens say where a word goes
// on, those of GGUF say where one begins.
func (g *ggufPlanner) wordPieces(fast *tokenizer.Fast, config *strictjson.Object) error {
	if fast.Model != "WordPiece" {
		return g.inFile(fastFile, fmt.Errorf("the model is %q; of %s WordPiece can be converted", fast.Model, g.class))
	}
	if err := g.checkWordPieces(fast); err != nil {
		return err
	}
	segments, ok, err := g.optInt("type_vocab_size")
	if err != nil {
		return err
	}
	if !ok {
		segments = 1
	}
	v := &vocabulary{kind: "bert", pre: g.options.PreTokenizer, segments: uint32(segments)}
	if v.pre == "" {
		v.pre, _ = fingerprintPre(fast, config)
	}
	if v.pre == "" {
		v.pre = defaultWordPre
	}
	if err := g.indexTokens(v, fast, config); err != nil {
		return err
	}
	for i, token := range v.tokens {
		if v.types[i] == tokenControl {
			continue
		}
		rest, ok := strings.CutPrefix(token, wordContinued)
		if !ok {
			rest = wordBegun + token
		}
		v.tokens[i] = rest
	}
	g.vocab = v
	v.special, err = g.specialTokens(defaultSpecials, int64(len(v.tokens)), fast, config)
	return err
}

// defaultWordPre is the name that the converter gives to the vocabulary of BERT in
// English. No runtime looks at the name of a WordPiece model.
const defaultWordPre = "jina-v2-en"

// checkWordPieces refuses what no runtime does with a WordPiece model: it splits text as
// BERT does, at spaces, punctuation and Chinese characters.
func (g *ggufPlanner) checkWordPieces(fast *tokenizer.Fast) error {
	refuse := func(what, seen, want string) error {
		return g.inFile(fastFile, fmt.Errorf("%s is %q; of a WordPiece model %s can be converted", what, seen, want))
	}
	model, _, err := fast.Root.OptObject("model")
	if err != nil {
		return g.inFile(fastFile, err)
	}
	if prefix, ok, err := model.OptString("continuing_subword_prefix"); err != nil || ok && prefix != wordContinued {
		return refuse("continuing_subword_prefix", prefix, wordContinued)
	}
	for _, part := range [][2]string{{"normalizer", "BertNormalizer"}, {"pre_tokenizer", "BertPreTokenizer"}} {
		o, ok, err := fast.Root.OptObject(part[0])
		if err != nil {
			return g.inFile(fastFile, err)
		}
		kind := "none"
		if ok {
			kind, _ = o.String("type")
		}
		if kind != part[1] {
			return refuse(part[0], kind, part[1])
		}
		for _, flag := range []string{"clean_text", "handle_chinese_chars"} {
			if on, ok, err := o.OptBool(flag); err != nil || ok && !on {
				return refuse(flag, "false", "true")
			}
		}
	}
	return nil
}
