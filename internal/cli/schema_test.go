package cli_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/loratool/loratool/internal/cli"
	"github.com/loratool/loratool/internal/fsatomic"
)

// schemas compiles the published schemas, by the name of what they describe. Strict ones
// allow no member that they do not name.
func schemas(t *testing.T, strict bool) map[string]*jsonschema.Schema {
	t.Helper()
	all := make(map[string]*jsonschema.Schema)
	for name, text := range cli.Schemas() {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if strict {
			closeObjects(doc)
		}
		c := jsonschema.NewCompiler()
		if err := c.AddResource(name, doc); err != nil {
			t.Fatal(err)
		}
		s, err := c.Compile(name) // against the schema of schemas, too
		if err != nil {
			t.Fatal(err)
		}
		all["loratool."+strings.TrimSuffix(name, ".schema.json")+"/v1"] = s
	}
	return all
}

// closeObjects forbids other members than those named.
func closeObjects(doc any) {
	switch doc := doc.(type) {
	case map[string]any:
		if _, ok := doc["properties"].(map[string]any); ok {
			doc["additionalProperties"] = false
		}
		for _, v := range doc {
			closeObjects(v)
		}
	case []any:
		for _, v := range doc {
			closeObjects(v)
		}
	}
}

// check validates one document, by the schema that it names; lines on stderr name none.
func check(t *testing.T, all map[string]*jsonschema.Schema, what, text string) (schema string) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	schema, ok := doc.(map[string]any)["schema"].(string)
	if !ok {
		schema = "loratool.messages/v1"
	}
	if all[schema] == nil {
		t.Errorf("%s: there is no schema %q", what, schema)
		return schema
	}
	if err := all[schema].Validate(doc); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return schema
}

// TestSchemas validates what the commands print, documents and messages: every member is
// in a schema, with its type, and what a schema requires is there. Each schema has a
// document, and a document without one of its members, or of another type, fails.
func TestSchemas(t *testing.T) {
	all, seen := schemas(t, true), make(map[string]bool)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	base, lora := demo+"base", demo+"adapter"
	gguf, ggufLoRA := "../../testdata/golden/ggufquant/source-f16.gguf", "../../testdata/golden/gguf/models/llama/lora-all/expected-f16.gguf"
	for _, args := range [][]string{
		mergeInto(at("merged"), "--verify"), mergeInto(at("none"), "--dry-run"), mergeInto(at("m4"), "--type", "nf4"),
		mergeInto(at("mq"), "--train-base", "nf4"), mergeInto(at("merged")), // which exists
		{"extract", "--base", base, "--tuned", at("merged"), "-o", at("x"), "--rank", "4", "--merge-check"},
		{"extract", "--base", base, "--tuned", at("merged"), "-o", at("y"), "--rank", "4", "--dry-run"},
		{"extract", "--base", base, "--tuned", at("merged"), "--sweep", "1,4"},
		{"resize", lora, "--sweep", "1,4"}, {"resize", lora, "-o", at("small"), "--rank", "2"},
		{"quantize", base, "-o", at("q"), "--type", "nf4", "--dry-run"}, {"quantize", base, "-o", at("q"), "--type", "nf4"},
		{"quantize", base, "-o", at("ql"), "--type", "nf4", "--loftq", "--adapter-out", at("pairs"), "--rank", "4"},
		{"convert", base, "-o", at("c"), "--dtype", "f32", "--verify"}, {"convert", base, "-o", at("c2"), "--dtype", "f32", "--dry-run"},
		{"inspect", base, "--stats", "--tree"}, {"inspect", lora, "--stats"}, {"inspect", base, "--manifest"}, {"inspect", at("q")}, {"inspect", at("none")},
		{"verify", at("merged")}, {"verify", "--base", base, "--adapter", lora, "--merged", base},
		{"verify", "--base", base, "--quantized", at("q")}, {"verify", "--loftq", base, at("ql"), at("pairs")},
		{"diff", base, at("merged")}, {"diff", lora, at("small")}, {"diff", base, base, "--atol", "1"}, {"version"}, {"nonsense"},
		{"inspect", gguf}, {"inspect", ggufLoRA, "--stats"}, {"quantize", gguf, "-o", at("g.gguf"), "--type", "q8_0", "--dry-run"},
		{"quantize", gguf, "-o", at("g.gguf"), "--type", "q8_0"}, {"diff", gguf, at("g.gguf")}, {"verify", "--base", gguf, "--quantized", at("g.gguf")},
	} {
		what := strings.Join(args, " ")
		slow := func(name string) string { return map[string]string{"LORATOOL_PROGRESS": "0.000001"}[name] }
		code, stdout, stderr := run(fsatomic.OS{}, slow, append(args, "--json")...)
		if code != 0 && code != 3 && args[0] != "nonsense" && stdout == "" && !strings.Contains(stderr, "exists") && !strings.HasSuffix(what, "none") {
			t.Errorf("%s: exit %d: %s", what, code, stderr)
		}
		if stdout != "" {
			seen[check(t, all, what, stdout)] = true
		}
		for line := range strings.Lines(stderr) {
			seen[check(t, all, what, line)] = true
		}
		if stdout != "" && strings.Contains(stdout, `"schema"`) {
			damaged(t, all, what, stdout)
		}
	}
	for name := range all {
		if !seen[name] {
			t.Errorf("no document of %s was looked at", name)
		}
	}
}

// damaged takes away each member of a document in turn, and gives it another type: no
// schema may let either pass, but what may be left out.
func damaged(t *testing.T, all map[string]*jsonschema.Schema, what, text string) {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	schema := all[doc["schema"].(string)]
	for name, value := range doc {
		doc[name] = map[bool]any{true: 7.5, false: "text"}[name == "schema" || isText(value)]
		if schema.Validate(doc) == nil {
			t.Errorf("%s: %q may be %v", what, name, doc[name])
		}
		doc[name] = value
	}
	if delete(doc, "schema"); schema.Validate(doc) == nil {
		t.Errorf("%s: it needs no schema", what)
	}
}

func isText(v any) bool { _, ok := v.(string); return ok }

// TestSchemasOfExamples validates the examples of docs/scripting.md.
func TestSchemasOfExamples(t *testing.T) {
	all := schemas(t, true)
	text, err := os.ReadFile("../../docs/scripting.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		examples := []string{block[1]}
		if strings.HasPrefix(block[1], `{"message_type"`) {
			examples = strings.Split(strings.TrimSpace(block[1]), "\n")
		}
		for _, example := range examples {
			check(t, all, "docs/scripting.md", example)
			n++
		}
	}
	if n < 10 {
		t.Errorf("only %d examples were looked at", n)
	}
}
