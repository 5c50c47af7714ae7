package tokenizer

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/strictjson"
)

// UnknownPreError says that no pre-tokenizer of llama.cpp is known to split text as a
// tokenizer.json asks for.
type UnknownPreError struct {
	Seen []string // what it does, step by step
}

func (e *UnknownPreError) Error() string {
	return fmt.Sprintf("no pre-tokenizer of llama.cpp is known that splits text as tokenizer.json does: %s", strings.Join(e.Seen, ", then "))
}

// Pre names the pre-tokenizer of a BPE model as llama.cpp does, by the regular
// expressions and flags that text is split with: they are what matters, whatever was
// done to the vocabulary. Where several names stand for the same steps, it is that of
// the family that came first.
func (f *Fast) Pre() (string, error) {
	steps, err := f.preSteps()
	if err != nil {
		return "", err
	}
	for _, known := range preTokenizers {
		if !slices.Equal(known.steps, steps) {
			continue
		}
		if known.name == "llama-bpe" {
			return f.llamaPre()
		}
		return known.name, nil
	}
	return "", &UnknownPreError{steps}
}

// llamaPre tells two names for one expression apart: a runtime lets texts begin with a
// token for llama-bpe, and takes whole words before it merges, and does neither for dbrx,
// which is Phi 4's too.
func (f *Fast) llamaPre() (string, error) {
	words := false
	if model, ok, err := f.Root.OptObject("model"); err != nil {
		return "", err
	} else if ok {
		if words, _, err = model.OptBool("ignore_merges"); err != nil {
			return "", fmt.Errorf("model: %w", err)
		}
	}
	if words || f.begins() {
		return "llama-bpe", nil
	}
	return "dbrx", nil
}

// begins reports whether a text gets a token in front.
func (f *Fast) begins() bool {
	post, ok, err := f.Root.OptObject("post_processor")
	if err != nil || !ok {
		return false
	}
	all := []strictjson.Value{post.Value()}
	if items, ok, err := post.OptItems("processors"); err == nil && ok {
		all = items
	}
	return slices.ContainsFunc(all, func(v strictjson.Value) bool {
		o, err := v.Object()
		if err != nil {
			return false
		}
		single, ok, err := o.OptItems("single")
		if err != nil || !ok || len(single) == 0 {
			return false
		}
		first, err := single[0].Object()
		if err != nil {
			return false
		}
		_, special := first.Get("SpecialToken")
		return special
	})
}

// PreNames are the names that [Fast.Pre] may give.
func PreNames() []string {
	all := []string{"dbrx"}
	for _, p := range preTokenizers {
		if !slices.Contains(all, p.name) {
			all = append(all, p.name)
		}
	}
	slices.Sort(all)
	return all
}

// The steps of a pre-tokenizer that are no regular expression: the byte alphabet alone,
// with the expression of GPT-2 before it, and digits one by one.
const (
	stepBytes  = "byte level"
	stepGPT2   = "byte level with the expression of GPT-2"
	stepDigits = "digits one by one"
)

// preTokenizers are the pre-tokenizers that are told apart, by their steps in
// tokenizer.json (llama.cpp 0.5, src/llama-vocab.cpp, where they stand beside the
// adapted expressions; those of deepseek-v3 are used as they are). Of the others, such as
// falcon and bloom, the source does not say what their tokenizer.json has.
var preTokenizers = []struct {
	name  string
	steps []string
}{
	{"gpt-2", []string{stepGPT2}},
	{"starcoder", []string{stepDigits, stepGPT2}},
	{"llama-bpe", []string{contractions + letters + `|\p{N}{1,3}` + rest, stepBytes}},
	{"qwen2", []string{contractions + letters + `|\p{N}` + rest, stepBytes}},
	{"qwen35", []string{contractions + `|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*` + spaces, stepBytes}},
	{"gpt-4o", []string{lower + shortened + upper + shortened + `|\p{N}{1,3}` + slashes, stepBytes}},
	{"tekken", []string{lower + upper + `|\p{N}` + slashes, stepBytes}},
	{"jais-2", []string{contractions + letters + `|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)` +
		`|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}`, stepBytes}},
	{"bailingmoe", []string{`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`, stepBytes}},
	{"seed-coder", []string{contractions + letters + `|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+` + spaces, stepBytes}},
	{"exaone-moe", []string{contractions + `|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?` +
		`|\s*[\r\n]|\s+(?!\S)|\s+`, stepBytes}},
	{"minicpm5", []string{`\p{N}{1,3}`, contractions + letters + `|\p{N}+` + rest, stepBytes}},
	{"tiny_aya", []string{`\d{1,3}(?=(?:\d{3})*\b)`, lower + shortened + upper + shortened + `|\p{N}{1,3}` + slashes, stepBytes}},
	{"deepseek-v3", []string{`\p{N}{1,3}`, `[一-龥぀-ゟ゠-ヿ]+`,
		"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", stepBytes}},
}

// The parts that the expressions have in common.
const (
	contractions = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
	letters      = `|[^\r\n\p{L}\p{N}]?\p{L}+`
	spaces       = `|\s*[\r\n]+|\s+(?!\S)|\s+`
	rest         = `| ?[^\s\p{L}\p{N}]+[\r\n]*` + spaces
	slashes      = `| ?[^\s\p{L}\p{N}]+[\r\n/]*` + spaces
	lower        = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
	upper        = `|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`
	shortened    = contractions + `?`
)

// preSteps returns what the pre-tokenizer does.
func (f *Fast) preSteps() ([]string, error) {
	pre, ok, err := f.Root.OptObject("pre_tokenizer")
	if err != nil {
		return nil, err
	}
	if !ok {
		return []string{"nothing"}, nil
	}
	return stepsOf(pre)
}

func stepsOf(pre *strictjson.Object) ([]string, error) {
	kind, err := pre.String("type")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	switch kind {
	case "Sequence":
		return sequence(pre)
	case "ByteLevel":
		return byteLevel(pre)
	case "Digits":
		if one, _, err := pre.OptBool("individual_digits"); err != nil || !one {
			return []string{"runs of digits"}, err
		}
		return []string{stepDigits}, nil
	case "Split":
		return split(pre)
	}
	return []string{kind}, nil
}

func sequence(pre *strictjson.Object) ([]string, error) {
	items, err := pre.Items("pretokenizers")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	var steps []string
	for _, item := range items {
		o, err := item.Object()
		if err != nil {
			return nil, fmt.Errorf("pre_tokenizer: %w", err)
		}
		if kind, _ := o.String("type"); kind == "Sequence" {
			return nil, &UnknownPreError{[]string{"a sequence in a sequence"}}
		}
		more, err := stepsOf(o)
		if err != nil {
			return nil, err
		}
		steps = append(steps, more...)
	}
	return steps, nil
}

func byteLevel(pre *strictjson.Object) ([]string, error) {
	prefix, _, err := pre.OptBool("add_prefix_space")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	expression, stated, err := pre.OptBool("use_regex")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	step := stepBytes
	if expression || !stated { // the default of the library
		step = stepGPT2
	}
	if prefix {
		step += " and a space in front"
	}
	return []string{step}, nil
}

// lineEnds writes the ends of lines as most files do; some have the characters themselves.
var lineEnds = strings.NewReplacer("\r", `\r`, "\n", `\n`)

// split returns the expression of a split that keeps all parts, which is how those of
// llama.cpp work.
func split(pre *strictjson.Object) ([]string, error) {
	pattern, err := pre.Object("pattern")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	expression, ok, err := pattern.OptString("Regex")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	behavior, _, err := pre.OptString("behavior")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	invert, _, err := pre.OptBool("invert")
	if err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	switch {
	case !ok:
		return []string{"a split at a fixed text"}, nil
	case behavior == "Isolated" && !invert, behavior == "Removed" && invert:
		return []string{lineEnds.Replace(expression)}, nil
	}
	return []string{fmt.Sprintf("%s (%s, inverted: %v)", expression, behavior, invert)}, nil
}
