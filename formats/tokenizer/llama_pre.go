package tokenizer

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dlclark/regexp2"
)

// llamaPre is how llama.cpp splits a text for a family of models, and what else it does
// that the name of the pre-tokenizer decides.
type llamaPre struct {
	name  string
	steps []splitStep

	whole  bool // words that are tokens are not merged from their parts
	begin  bool // a text begins with a token unless the file says otherwise
	noBOS  bool // there is no usual token to begin with
	raw    bool // not in the alphabet of bytes
	escape bool // blanks are written as U+2581
}

// splitStep cuts a part of a text: it returns the lengths of the parts of it.
type splitStep func(text []rune) ([]int, error)

// newLlamaPre finds a pre-tokenizer by its name.
func newLlamaPre(name string) (*llamaPre, error) {
	for i := range llamaPreTokenizers {
		known := &llamaPreTokenizers[i]
		if !slices.Contains(known.names, name) {
			continue
		}
		pre := &llamaPre{name: known.names[0], whole: known.whole, begin: known.begin, noBOS: known.noBOS, raw: known.raw, escape: known.escape}
		for _, expression := range known.steps {
			step, err := newSplitStep(expression)
			if err != nil {
				return nil, fmt.Errorf("the pre-tokenizer %q: %w", name, err)
			}
			pre.steps = append(pre.steps, step)
		}
		return pre, nil
	}
	return nil, &UnsupportedError{"tokenizer.ggml.pre", fmt.Sprintf("the pre-tokenizer %q", name)}
}

// split cuts a text into words. Each step cuts the parts that the one before has left;
// what an expression does not match is a part too.
func (p *llamaPre) split(text string) ([]string, error) {
	parts := [][]rune{[]rune(text)}
	for _, step := range p.steps {
		var next [][]rune
		for _, part := range parts {
			lengths, err := step(part)
			if err != nil {
				return nil, err
			}
			for _, n := range lengths {
				if n > 0 {
					next = append(next, part[:n])
				}
				part = part[n:]
			}
		}
		parts = next
	}
	words := make([]string, len(parts))
	for i, part := range parts {
		words[i] = string(part)
	}
	return words, nil
}

// newSplitStep makes a step of an expression of the table.
func newSplitStep(expression string) (splitStep, error) {
	if step, ok := splittersByHand[expression]; ok {
		return func(text []rune) ([]int, error) { return step(text), nil }, nil
	}
	pattern, collapsed := collapsedExpression(expression)
	re, err := regexp2.Compile(pattern, regexp2.None)
	if err != nil {
		return nil, err
	}
	return func(text []rune) ([]int, error) {
		collapse := blanksCollapsed
		if collapsed {
			collapse = classCollapsed
		}
		seen := make([]rune, len(text))
		for i, r := range text {
			seen[i] = collapse(r)
		}
		return matches(re, seen)
	}, nil
}

func matches(re *regexp2.Regexp, text []rune) ([]int, error) {
	var lengths []int
	done := 0
	m, err := re.FindRunesMatch(text)
	for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
		lengths = append(lengths, m.Index-done, m.Length)
		done = m.Index + m.Length
	}
	return append(lengths, len(text)-done), err
}

// The expressions are those of C++ (std::regex of ECMAScript), which knows neither classes
// of Unicode nor, in the way llama.cpp calls it, anything but bytes. Where an expression
// has classes, the text is therefore made of bytes first: a character beyond ASCII becomes
// a byte that stands for its class, and so does the class in the expression, beside what
// ASCII has of it. Upper and lower case are one class then, and blanks beyond ASCII are all
// one. An expression without classes sees the text as it is but for such blanks.
var collapsedClasses = []struct {
	class   charClass
	letter  rune
	ascii   string
	written []string
}{
	{classNumber, 0xD1, `0-9`, []string{`\p{N}`}},
	{classLetter, 0xD2, `A-Za-z`, []string{`\p{L}`, `\p{Lu}`, `\p{Ll}`, `\p{Lt}`, `\p{Lm}`, `\p{Lo}`}},
	{classPunctuation, 0xD3, `!-#%-*,-/:-;?-@\[-\]_\{\}`, []string{`\p{P}`}},
	{classMark, 0xD4, ``, []string{`\p{M}`}},
	{classSymbol, 0xD5, "$+<->^`|~", []string{`\p{S}`}},
}

const (
	collapsedBlank = '\v'
	collapsedOther = 0xD0
)

// classCollapsed is what an expression with classes sees of a character.
func classCollapsed(r rune) rune {
	if r < 0x80 {
		return r
	}
	class := classOf(r)
	if class&classBlank != 0 {
		return collapsedBlank
	}
	for i := range collapsedClasses {
		if class&collapsedClasses[i].class != 0 {
			return collapsedClasses[i].letter
		}
	}
	return collapsedOther
}

// blanksCollapsed is what an expression without classes sees of a character.
func blanksCollapsed(r rune) rune {
	if r >= 0x80 && classOf(r)&classBlank != 0 {
		return collapsedBlank
	}
	return r
}

// collapsedExpression writes an expression for regexp2, and says whether it has classes.
// Digits are those of ASCII, and the end is the very end.
func collapsedExpression(expression string) (pattern string, collapsed bool) {
	var b strings.Builder
	inside := false // of a set
	for rest := expression; rest != ""; {
		if class, after, ok := cutClass(rest); ok {
			if collapsed = true; !inside {
				class = "[" + class + "]"
			}
			b.WriteString(class)
			rest = after
			continue
		}
		size := 1
		switch {
		case strings.HasPrefix(rest, `\d`) && !inside:
			b.WriteString("[0-9]")
			rest = rest[2:]
			continue
		case rest == "$":
			b.WriteString(`\z`)
			rest = ""
			continue
		case rest[0] == '\\':
			size = 2
		case rest[0] == '[':
			inside = true
		case rest[0] == ']':
			inside = false
		}
		b.WriteString(rest[:size])
		rest = rest[size:]
	}
	return b.String(), collapsed
}

// cutClass takes a class off the front of an expression and returns it as part of a set.
func cutClass(expression string) (set, after string, ok bool) {
	for _, c := range collapsedClasses {
		for _, written := range c.written {
			if after, ok := strings.CutPrefix(expression, written); ok {
				return string(c.letter) + c.ascii, after, true
			}
		}
	}
	return "", expression, false
}

// Parts of the expressions, beside those of tokenizer.json (pre.go).
const (
	llamaGPT2     = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)`
	llamaNewlines = `[^\n]+|[\n]+`
	llamaCased    = `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`
	llamaLower    = `[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+`
	llamaUpper    = `|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*`
)

// llamaPreTokenizers are the pre-tokenizers of llama.cpp 0.5, by the names that
// tokenizer.ggml.pre may have, with what src/llama-vocab.cpp has them do.
var llamaPreTokenizers = []struct {
	names                            []string
	steps                            []string
	whole, begin, noBOS, raw, escape bool
}{
	{names: []string{"", "default"}, steps: []string{`[\p{P}\$\+<=>\^~\|]+`, llamaGPT2, `\p{N}+`, `[0-9][0-9][0-9]`}},
	{names: []string{"minicpm5"}, steps: []string{`\p{N}{1,3}`, llamaCased + letters + `|\p{N}+` + rest}, whole: true},
	{names: []string{"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}, steps: []string{llamaCased + letters + `|\p{N}{1,3}` + rest}, whole: true, begin: true},
	{names: []string{"deepseek-llm"}, steps: []string{"[\r\n]", `\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+`, `\s?[!-/:-~！-／：-～‘-‟　-。]+`, `\s+$`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}+`}},
	{names: []string{"deepseek-coder"}, steps: []string{"[\r\n]", `\s?\p{L}+`, `\s?\p{P}+`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}`}},
	{names: []string{"deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"}, steps: []string{`\p{N}{1,3}`, `[一-龥぀-ゟ゠-ヿ]+`, "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"}},
	{names: []string{"spark2_5"}, steps: []string{`\p{N}{1,3}`, `[一-龥぀-ゟ゠-ヿ]+`, "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+|[\r\n]|\\s+(?!\\S)|\\s+", `\p{N}`}},
	{names: []string{"youtu"}, steps: []string{`[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+`, lower + llamaCased + `?` + upper + llamaCased + `?|\p{N}` + slashes}, whole: true},
	{names: []string{"falcon"}, steps: []string{"[\\p{P}\\$\\+<=>\\^~\\|`]+", llamaGPT2, `[0-9][0-9][0-9]`}},
	{names: []string{"mpt", "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "olmo", "jais", "exaone4", "trillion", "granite-docling"}, steps: []string{llamaGPT2}},
	{names: []string{"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"}, steps: []string{`\p{N}`, llamaGPT2}},
	{names: []string{"jais-2"}, steps: []string{llamaCased + letters + `|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}`}},
	{names: []string{"gemma4", "granite-embed-multi-311m"}, steps: []string{llamaNewlines}, raw: true, escape: true},
	{names: []string{"sarvam-moe"}, steps: []string{llamaNewlines}, raw: true, escape: true},
	{names: []string{"whitespace"}, steps: []string{`\S+`}, raw: true},
	{names: []string{"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "grok-2", "solar-open"}, steps: []string{llamaCased + letters + `|\p{N}` + rest}},
	{names: []string{"qwen35"}, steps: []string{llamaQwen35}},
	{names: []string{"dbrx", "smaug-bpe"}, steps: []string{llamaCased + letters + `|\p{N}{1,3}` + rest}},
	{names: []string{"poro-chat", "bloom", "gpt3-finnish"}, steps: []string{` ?[^(\s|.,!?…。，、।۔،)]+`}},
	{names: []string{"glm4", "chatglm-bpe"}, steps: []string{llamaCased + letters + `|\p{N}{1,3}` + rest}, noBOS: true},
	{names: []string{"viking"}, steps: []string{` ?[^(\s|.,!?…。，、।۔،)]+`, `\p{N}`}},
	{names: []string{"tekken"}, steps: []string{llamaLower + llamaUpper + `|\p{N}` + slashes}, whole: true, begin: true},
	{names: []string{"exaone-moe"}, steps: []string{llamaCased + `|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+`}},
	{names: []string{"chameleon"}, steps: []string{`<sentinel:[0-9]+>`, `(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z`, `([\t\n]|    |  )`, `\p{N}`, "[\\p{P}!-/:-@\\[-`{-~]", llamaGPT2}, begin: true},
	{names: []string{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"}, steps: []string{llamaLower + llamaCased + `?` + llamaUpper + llamaCased + `?|\p{N}{1,3}` + slashes}},
	{names: []string{"granite-embed-multi-97m"}, steps: []string{`[^\r\n\p{L}\p{N}]?((?=[\p{L}\p{M}])([^a-z]))*((?=[\p{L}\p{M}])([^A-Z]))+` + llamaCased + `?|[^\r\n\p{L}\p{N}]?((?=[\p{L}\p{M}])([^a-z]))+((?=[\p{L}\p{M}])([^A-Z]))*` + llamaCased + `?|\p{N}{1,3}` + slashes}, whole: true},
	{names: []string{"tiny_aya", "cohere2moe"}, steps: []string{`\d{1,3}(?=(?:\d{3})*\b)`, lower + llamaCased + `?` + upper + llamaCased + `?|\p{N}{1,3}` + slashes}},
	{names: []string{"superbpe"}, steps: []string{`\p{N}+`, `(?=(\d{3})+(?!\d))`}},
	{names: []string{"bailingmoe", "bailingmoe2", "llada-moe"}, steps: []string{`'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])` + letters + `|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`}},
	{names: []string{"seed-coder"}, steps: []string{llamaCased + letters + `|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+` + spaces}},
	{names: []string{"kimi-k2"}, steps: []string{`\p{Han}+`}},
	{names: []string{"ufakzeka"}, steps: []string{`[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}` + rest}},
	{names: []string{"afmoe"}, steps: []string{`\p{AFMoE_digits}`, `[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+`, "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*" + spaces}},
	{names: []string{"laguna"}, steps: []string{llamaNewlines, llamaCased + letters + `|\p{N}` + rest}},
}
