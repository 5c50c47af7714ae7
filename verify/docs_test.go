package verify_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/loratool/loratool/verify"
)

var update = flag.Bool("update", false, "rewrite the table of codes in docs/verify.md")

// TestCodesDocumented guards the table of codes in docs/verify.md.
func TestCodesDocumented(t *testing.T) {
	const path, begin, end = "../docs/verify.md", "<!-- codes -->\n", "<!-- end of codes -->"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := before + begin + codeTable() + end + after
	if want == string(data) {
		return
	}
	if !*update {
		t.Fatalf("%s: the table of codes is stale; run go test ./verify -run Codes -update", path)
	}
	if err := os.WriteFile(path, []byte(want), 0o666); err != nil {
		t.Fatal(err)
	}
}

func codeTable() string {
	var b strings.Builder
	b.WriteString("| code | family | severity | meaning | value | limit |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, c := range verify.Codes() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", c.Name, c.Family, c.Severity, c.Meaning, c.Value, c.Limit)
	}
	return b.String()
}

// TestCodesUnique guards against two meanings of one name.
func TestCodesUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range verify.Codes() {
		if seen[c.Name] || c.Meaning == "" || c.Family == "" {
			t.Errorf("code %+v", c)
		}
		seen[c.Name] = true
	}
}
