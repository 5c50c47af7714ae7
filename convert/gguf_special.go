package convert

import (
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file finds the special tokens, as gguf-py/gguf/vocab.py does: tokenizer.json,
// tokenizer_config.json and config.json contradict each other often enough for the order
// to matter.

// specials are the special tokens and what is done with them.
type specials struct {
	ids    []specialID
	adds   []specialFlag
	config *strictjson.Object // tokenizer_config.json, with what tokenizer.json adds
	types  []string

	template    strictjson.Value
	templates   bool // there is a template
	spacePrefix *bool
	lowercase   *bool
	stripAccent *bool
}

type specialID struct {
	kind string
	id   uint32
}

type specialFlag struct {
	kind string
	add  bool
}

// defaultSpecials are the kinds of special tokens that are looked for.
var defaultSpecials = []string{"bos", "eos", "unk", "sep", "pad", "cls", "mask"}

// specialKeys are the keys of special tokens, by their kinds; the misspelling is
// llama.cpp's own. A class token has none.
var specialKeys = map[string]string{
	"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask", "eot": "eot", "eom": "eom",
}

// addKeys are the kinds of tokens that a text may be given by itself.
var addKeys = []string{"bos", "eos", "sep"}

// specialTokens finds the special tokens of the given kinds; ids from size on are left
// out, of a size of -1 none.
func (g *ggufPlanner) specialTokens(types []string, size int64, fast *tokenizer.Fast, config *strictjson.Object) (*specials, error) {
	s := &specials{types: slices.Clone(types)}
	if config != nil {
		s.config = strictjson.NewObject()
		for k, v := range config.All() {
			s.config.Set(k, v)
		}
		if prefix, ok, err := config.OptBool("add_prefix_space"); err == nil && ok {
			s.spacePrefix = &prefix
		}
	}
	var added []tokenizer.AddedToken
	if fast != nil {
		added = fast.Added
		s.readNormalizer(fast.Root)
		s.readProcessors(fast.Root)
	}
	if s.config != nil {
		if err := g.readTemplate(s); err != nil {
			return nil, err
		}
		s.readConfig(added, size)
	}
	s.readModelConfig(g.source.Config, size)
	return s, nil
}

// add notes the id of a kind, the first one that is found.
func (s *specials) add(kind string, id, size int64) {
	if id < 0 || id > math.MaxUint32 || size >= 0 && id >= size {
		return
	}
	if !slices.ContainsFunc(s.ids, func(e specialID) bool { return e.kind == kind }) {
		s.ids = append(s.ids, specialID{kind, uint32(id)})
	}
}

// flag notes whether a token is put around texts; what comes later counts.
func (s *specials) flag(kind string, add bool) {
	i := slices.IndexFunc(s.adds, func(f specialFlag) bool { return f.kind == kind })
	if i < 0 {
		s.adds = append(s.adds, specialFlag{kind, add})
		return
	}
	s.adds[i].add = add
}

func (s *specials) readNormalizer(root *strictjson.Object) {
	if o, ok, err := root.OptObject("normalizer"); err == nil && ok {
		s.normalizer(o)
	}
}

func (s *specials) normalizer(o *strictjson.Object) {
	yes := true
	switch kind, _ := o.String("type"); kind {
	case "Lowercase":
		s.lowercase = &yes
	case "StripAccents":
		s.stripAccent = &yes
	case "BertNormalizer":
		if lower, ok, err := o.OptBool("lowercase"); err == nil && ok {
			s.lowercase = &lower
		}
		if strip, ok, err := o.OptBool("strip_accents"); err == nil && ok {
			s.stripAccent = &strip
		}
	case "Sequence":
		items, _, _ := o.OptItems("normalizers")
		for _, item := range items {
			if inner, err := item.Object(); err == nil {
				s.normalizer(inner)
			}
		}
	}
}

// token returns a setting of tokenizer_config.json; null where there is none.
func (s *specials) token(kind string) strictjson.Value {
	if s.config == nil {
		return strictjson.NewNull()
	}
	v, _ := s.config.Get(kind + "_token")
	return v
}

// missing reports whether Python takes a value for false.
func missing(v strictjson.Value) bool {
	text, err := v.Text()
	return v.IsNull() || err == nil && text == ""
}

// readProcessors finds out from the post-processor which tokens are put around texts.
func (s *specials) readProcessors(root *strictjson.Object) {
	if s.config != nil {
		if missing(s.token("bos")) && !missing(s.token("cls")) {
			s.config.Set("bos_token", s.token("cls"))
		}
		if missing(s.token("eos")) && !missing(s.token("sep")) {
			s.config.Set("eos_token", s.token("sep"))
		}
	}
	post, ok, err := root.OptObject("post_processor")
	if err != nil || !ok {
		return
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
		case "RobertaProcessing":
			for _, kind := range addKeys {
				s.flag(kind, true)
			}
		case "TemplateProcessing":
			s.template1(o)
		}
	}
}

// template1 reads what the template for single texts has around the text.
func (s *specials) template1(o *strictjson.Object) {
	single, _, _ := o.OptItems("single")
	first, last := "", ""
	bos, eos, class := s.token("bos"), s.token("eos"), s.token("cls")
	if len(single) > 1 {
		if first = specialOf(single[0]); first != "" {
			v := strictjson.NewString(first)
			switch {
			case s.config == nil:
				bos = v
			case !v.Equal(bos) && !v.Equal(class):
				if missing(bos) {
					s.config.Set("bos_token", v)
					bos = v
				}
				if missing(class) {
					s.config.Set("cls_token", v)
					class = v
				}
			}
			s.flag("bos", v.Equal(bos) || v.Equal(class))
		}
		if last = specialOf(single[len(single)-1]); last != "" {
			v := strictjson.NewString(last)
			switch {
			case s.config == nil:
				eos = v
			case !v.Equal(eos):
				for _, kind := range []string{"eot", "eom"} {
					if !slices.Contains(s.types, kind) {
						s.types = append(s.types, kind)
						s.config.Set(kind+"_token", eos)
						break
					}
				}
				s.config.Set("eos_token", v)
				eos = v
			}
			s.flag("eos", true)
		}
	}
	pair, _, _ := o.OptItems("pair")
	s.template2(pair, first, last, eos)
}

// template2 reads what the template for pairs has between the texts.
func (s *specials) template2(pair []strictjson.Value, first, last string, eos strictjson.Value) {
	if len(pair) == 0 {
		return
	}
	if first != "" && specialOf(pair[0]) == first {
		pair = pair[1:]
	}
	if len(pair) > 0 && last != "" && specialOf(pair[len(pair)-1]) == last {
		pair = pair[:len(pair)-1]
	}
	if len(pair) < 3 || sequenceOf(pair[0]) != "A" || sequenceOf(pair[len(pair)-1]) != "B" {
		return
	}
	between := pair[1 : len(pair)-1]
	separates := func(v strictjson.Value) bool {
		token := strictjson.NewString(specialOf(v))
		return specialOf(v) != "" && (token.Equal(s.token("sep")) || token.Equal(eos))
	}
	add := separates(between[0]) && last == ""
	if len(between) == 2 && separates(between[1]) {
		add = true
	}
	s.flag("sep", add)
	if add && s.config != nil && missing(s.token("sep")) {
		s.config.Set("sep_token", eos)
	}
}

func specialOf(v strictjson.Value) string  { return idOf(v, "SpecialToken") }
func sequenceOf(v strictjson.Value) string { return idOf(v, "Sequence") }

// idOf returns the id of a part of a template that is of a kind.
func idOf(v strictjson.Value, kind string) string {
	o, err := v.Object()
	if err != nil {
		return ""
	}
	inner, ok, err := o.OptObject(kind)
	if err != nil || !ok {
		return ""
	}
	id, _ := inner.String("id")
	return id
}

// The files of chat templates.
const (
	templateFile     = "chat_template.jinja"
	templateJSONFile = "chat_template.json"
)

// readTemplate finds the chat template: that of tokenizer_config.json, or of a file of
// its own.
func (g *ggufPlanner) readTemplate(s *specials) error {
	if v, ok := s.config.Get("chat_template"); ok {
		s.template, s.templates = v, !v.IsNull()
		return nil
	}
	text, ok, err := g.file(templateFile)
	if err != nil {
		return err
	}
	if ok {
		s.template, s.templates = strictjson.NewString(string(text)), true
		return nil
	}
	o, err := g.object(templateJSONFile)
	if err != nil || o == nil {
		return err
	}
	if v, ok := o.Get("chat_template"); ok {
		s.template, s.templates = v, !v.IsNull()
	}
	return nil
}

// readConfig takes the tokens that tokenizer_config.json names, by their ids among the
// added ones.
func (s *specials) readConfig(added []tokenizer.AddedToken, size int64) {
	for _, kind := range s.types {
		if add, ok, err := s.config.OptBool("add_" + kind + "_token"); err == nil && ok {
			s.flag(kind, add)
		}
		text := tokenText(s.config, kind)
		i := slices.IndexFunc(added, func(t tokenizer.AddedToken) bool { return t.Content == text })
		if i >= 0 {
			s.add(kind, added[i].ID, size)
		}
	}
}

// readModelConfig takes the ids of config.json for what is still missing.
func (s *specials) readModelConfig(config *strictjson.Object, size int64) {
	for _, kind := range s.types {
		name := kind + "_token_id"
		v, _ := config.Get(name)
		if id, err := v.Int(); err == nil { // a list of ends has no place
			s.add(kind, id, size)
		}
	}
}

// write writes the keys.
func (s *specials) write(g *ggufPlanner) {
	const prefix = "tokenizer.ggml."
	for _, e := range s.ids {
		if key, ok := specialKeys[e.kind]; ok {
			set(g, prefix+key+"_token_id", e.id)
		}
	}
	for _, f := range s.adds {
		if slices.Contains(addKeys, f.kind) {
			set(g, prefix+"add_"+f.kind+"_token", f.add)
		}
	}
	s.writeTemplates(g)
	if s.lowercase != nil {
		set(g, prefix+"normalizer.lowercase", *s.lowercase)
	}
	if s.stripAccent != nil {
		set(g, prefix+"normalizer.strip_accents", *s.stripAccent)
	}
}

// writeTemplates writes one chat template, or several with their names.
func (s *specials) writeTemplates(g *ggufPlanner) {
	const key = "tokenizer.chat_template"
	if !s.templates {
		return
	}
	if text, err := s.template.Text(); err == nil {
		g.text(key, text)
		return
	}
	items, err := s.template.Items()
	if err != nil {
		g.decide("template-left-out", "the chat template is neither a text nor a list of them")
		return
	}
	var names []string
	first := ""
	for _, item := range items {
		o, err := item.Object()
		if err != nil {
			continue
		}
		name, _ := o.String("name")
		text, err := o.String("template")
		name = strings.Map(func(r rune) rune {
			if r < 128 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
				return r
			}
			return '_'
		}, name)
		switch {
		case name == "" || err != nil:
		case name == "default":
			first = text
		default:
			names = append(names, name)
			g.text(key+"."+name, text)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		g.keys.Set("tokenizer.chat_templates", gguf.ArrayOf(slices.Compact(names)))
	}
	g.text(key, first)
}
