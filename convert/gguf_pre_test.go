package convert

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

// TestPreTokenizerWitnesses plants every way in which the regular expressions and the
// fingerprint of a published tokenizer can agree and disagree.
func TestPreTokenizerWitnesses(t *testing.T) {
	digits := strings.NewReplacer(`\\p{N}{1,3}`, `\\p{N}{1,4}`) // no name's expression, and another text's ids
	digitsTwice := strings.NewReplacer(`|\\p{N}{1,3}|`, `|\\p{N}{1,3}|\\p{N}{1,3}|`)
	one := strings.NewReplacer(`\\p{N}|`, `\\p{N}{1,3}|`)
	for _, c := range []struct {
		name, file string
		change     *strings.Replacer
		config     string
		asked      string
		want, why  string
	}{
		{name: "both", file: "qwen3", want: "qwen2", why: "by the regular expressions in tokenizer.json and by its fingerprint"},
		{name: "both, after the token of a class", file: "llama3", config: `{"add_bos_token":true,"bos_token":{"content":"<|begin_of_text|>"}}`,
			want: "llama-bpe", why: "and by its fingerprint"},
		{name: "another name for the same", file: "deepseek-v3", want: "joyai-llm", why: "a runtime splits text as for deepseek-v3"},
		{name: "contradiction", file: "llama3", want: "llama-bpe", why: "--pre smaug-bpe would take"},
		{name: "the fingerprint alone", file: "llama3", change: digitsTwice, want: "smaug-bpe", why: "are not known"},
		{name: "the expressions alone", file: "gpt-oss", change: strings.NewReplacer(`"!":0`, `"!":199990`), want: "gpt-4o", why: "by the regular expressions in tokenizer.json"},
		{name: "neither", file: "llama3", change: digits, why: "its fingerprint "},
		{name: "other expressions", file: "qwen3", change: one, want: "llama-bpe|dbrx", why: "by the regular expressions in tokenizer.json"},
		{name: "asked for", file: "qwen3", asked: "falcon", want: "falcon", why: "as asked for"},
		{name: "no fingerprint", file: "llama3", change: strings.NewReplacer(`"Split"`, `"Cut"`), why: `it has no fingerprint (pre_tokenizer: "Cut" is not known)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("..", "testdata", "golden", "tokenizer", "cut-"+c.file+".json"))
			if err != nil {
				t.Fatal(err)
			}
			text := string(data)
			if c.change != nil {
				if text = c.change.Replace(text); text == string(data) {
					t.Fatal("nothing was changed")
				}
			}
			if c.file == "llama3" {
				text = strings.Replace(text, `"added_tokens":[]`, `"added_tokens":[{"id":128000,"content":"<|begin_of_text|>","special":true}]`, 1)
			}
			fast, err := tokenizer.ParseFast([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			var config *strictjson.Object
			if c.config != "" {
				if config, err = strictjson.ParseObject([]byte(c.config)); err != nil {
					t.Fatal(err)
				}
			}
			g := &ggufPlanner{planner: &planner{source: &checkpoint.Model{}, plan: &plan.Plan{}}}
			v := &vocabulary{pre: c.asked}
			err = g.preTokenizer(v, fast, config)
			if c.want == "" {
				if err == nil || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), "--pre NAME") {
					t.Errorf("%q, error %v, want one with %q", v.pre, err, c.why)
				}
				return
			}
			if err != nil || !strings.Contains("|"+c.want+"|", "|"+v.pre+"|") {
				t.Fatalf("the pre-tokenizer is %q, %v; want %q", v.pre, err, c.want)
			}
			if text := g.plan.Decisions[0].Message; !strings.Contains(text, v.pre) || !strings.Contains(text, c.why) {
				t.Errorf("decision %q, want one with %q", text, c.why)
			}
		})
	}
}
