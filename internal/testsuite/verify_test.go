package testsuite_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// verified runs verify on a merge and returns its exit code and the findings by code.
func verified(t *testing.T, merged string, args ...string) (code int, findings map[string]int) {
	t.Helper()
	code, stdout, stderr := run(t, append([]string{"verify", "--json", "--merged", merged}, args...)...)
	if code != 0 && code != 3 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var doc struct {
		Findings []struct{ Code, Severity, Tensor, Message string }
	}
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
		t.Fatal(err)
	}
	findings = make(map[string]int)
	for _, f := range doc.Findings {
		findings[f.Code]++
		if f.Severity == "error" {
			t.Logf("%s %s: %s", f.Code, f.Tensor, f.Message)
		}
	}
	return code, findings
}

// overlay writes a folder of a base in which some tensors are replaced.
func overlay(t *testing.T, base, changed *checkpoint.Model) string {
	t.Helper()
	dir := t.TempDir()
	var specs []tensor.Spec
	for _, s := range base.Specs() {
		if c, ok := changed.Lookup(s.Name); ok {
			s = c
		}
		specs = append(specs, s)
	}
	l, err := safetensors.NewLayout(specs, map[string]string{"format": "pt"})
	if err != nil {
		t.Fatal(err)
	}
	data := append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...)
	for _, s := range specs {
		from := base
		if _, ok := changed.Lookup(s.Name); ok {
			from = changed
		}
		at, _ := l.Offset(s.Name)
		copy(data[at:], raw(t, from, s.Name))
	}
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), data, 0o666); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(base.Path, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestVerifyPEFT checks merges that PEFT made: none of them is wrong, and those that
// it rounded twice are recognised.
func TestVerifyPEFT(t *testing.T) {
	const demo = "../../testdata/demo"
	base := open(t, filepath.Join(demo, "base"))
	for name, twice := range map[string]int{"plain": 0, "safe": 14, "half": 14} {
		t.Run(name, func(t *testing.T) {
			merged := overlay(t, base, open(t, filepath.Join("../../testdata/golden/verify", name+".safetensors")))
			code, found := verified(t, merged, "--base", base.Path, "--adapter", filepath.Join(demo, "adapter"))
			if code != 0 || found["peft-double-rounding"] != twice || len(found) != min(twice, 1) {
				t.Errorf("exit %d, findings %v; want %d rounded twice", code, found, twice)
			}
		})
	}
	for _, c := range goldenCases(t) {
		path := filepath.Join(golden, "cases", c.name, "expected_bf16.safetensors")
		if _, err := os.Stat(path); err != nil {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			base := open(t, filepath.Join(golden, "bases", c.Base))
			code, found := verified(t, overlay(t, base, open(t, path)), c.args()[1:]...)
			if code != 0 {
				t.Errorf("exit %d, findings %v", code, found)
			}
			if experts := strings.Contains(c.name, "experts"); experts != (found["peft-double-rounding"] > 0) {
				t.Errorf("%d tensors rounded twice", found["peft-double-rounding"])
			}
		})
	}
}

// TestVerifyGolden checks what loratool itself makes of every case, as the base is
// stored: no error, and no value that is rounded in another way than once.
func TestVerifyGolden(t *testing.T) {
	for _, c := range goldenCases(t) {
		if c.Refused != "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "out")
			if code, _, stderr := run(t, append(c.args(), "-q", "-o", out)...); code != 0 {
				t.Fatalf("exit %d: %s", code, stderr)
			}
			code, found := verified(t, out, c.args()[1:]...)
			if code != 0 || found["peft-double-rounding"]+found["base-rounded"] > 0 {
				t.Errorf("exit %d, findings %v", code, found)
			}
		})
	}
}
