package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/cli"
)

// TestFresh guards docs/cli and schemas against help and types that have changed since.
func TestFresh(t *testing.T) {
	const remedy = "run make docs"
	for dir, want := range map[string]map[string]string{"../../docs/cli": pages(cli.Tree()), "../../schemas": schemas()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if sorted := slices.Sorted(maps.Keys(want)); !slices.Equal(names, sorted) {
			t.Errorf("%s has %q, want %q; %s", dir, names, sorted, remedy)
		}
		for name, page := range want {
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil && string(got) != page {
				t.Errorf("%s/%s is stale; %s", dir, name, remedy)
			}
		}
	}
}

// TestWrite guards against pages of commands that are gone.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"loratool_gone.md", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(dir, "*.md", map[string]string{"loratool.md": "text\n"}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	want := []string{filepath.Join(dir, "loratool.md"), filepath.Join(dir, "notes.txt")}
	if err != nil || !slices.Equal(left, want) {
		t.Errorf("got %q, want %q (%v)", left, want, err)
	}
}

// TestScriptingExamples guards the documents in docs/scripting.md: each is JSON,
// and each schema has one.
func TestScriptingExamples(t *testing.T) {
	text, err := os.ReadFile("../../docs/scripting.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		// Messages are one to a line, results one to a block.
		documents := []string{block[1]}
		if strings.HasPrefix(block[1], `{"message_type"`) {
			documents = strings.Split(strings.TrimSpace(block[1]), "\n")
		}
		for _, doc := range documents {
			var head struct {
				Schema string
				Type   string `json:"message_type"`
			}
			if err := json.Unmarshal([]byte(doc), &head); err != nil {
				t.Errorf("%v in\n%s", err, doc)
			}
			seen[head.Schema+head.Type] = true
		}
	}
	for _, want := range []string{
		"loratool.plan/v1", "loratool.merge/v1", "loratool.inspect/v1", "loratool.verify/v1", "loratool.version/v1", "progress", "note", "error",
	} {
		if !seen[want] {
			t.Errorf("no example of %s", want)
		}
	}
}
