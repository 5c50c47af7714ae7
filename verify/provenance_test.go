package verify_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/verify"
)

// provenance runs the family alone and returns what it found.
func provenance(t *testing.T, m *checkpoint.Model, inputs ...*checkpoint.Model) []string {
	t.Helper()
	r := new(verify.Report)
	if err := verify.Provenance(t.Context(), r, m, inputs, verify.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Log(f.Code, f.Message)
	}
	return found(r)
}

var provenanceCaught = make(map[string]bool)

func wantFound(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	for _, code := range got {
		code, _, _ = strings.Cut(code, " ") // and a tensor
		provenanceCaught[code] = true
	}
}

// TestSums compares a folder with SHA256SUMS in the forms that sha256sum writes.
func TestSums(t *testing.T) {
	f := tinyLlama(t)
	weights := fmt.Sprintf("%x", sha256.Sum256(f.weights(f.specs)))
	f.config = nil
	all := weights + "  model.safetensors\n"
	for _, c := range []struct {
		name, sums string
		want       []string
	}{
		{"clean", all, nil},
		{"clean, binary and upper case", "# made by hand\n" + strings.ToUpper(weights) + " *./model.safetensors\r\n\n", nil},
		{"another hash", strings.Replace(all, weights[:4], "0000", 1), []string{"sums-differ"}},
		{"file gone", all + weights + "  tokenizer.model\n", []string{"sums-missing"}},
		{"not listed", fmt.Sprintf("%x  tokenizer.json\n", sha256.Sum256([]byte(tokenizer(12)))), []string{"sums-unlisted"}},
		{"no hash", "model.safetensors\n", []string{"sums-unreadable"}},
		{"short hash", all[8:], []string{"sums-unreadable"}},
		{"outside", weights + "  ../model.safetensors\n", []string{"sums-unreadable"}},
		{"absolute", weights + "  /etc/passwd\n", []string{"sums-unreadable"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.files["SHA256SUMS"] = c.sums
			f.t = t
			wantFound(t, provenance(t, openPath(t, f.write())), c.want)
		})
	}
	wantFound(t, provenance(t, openPath(t, tinyLlama(t).write())), nil) // without the file
}

// recorded writes a model whose metadata has the record.
func recorded(t *testing.T, record string) *checkpoint.Model {
	t.Helper()
	f := tinyLlama(t)
	dir := f.write()
	l, err := safetensors.NewLayout(f.specs[:1], map[string]string{"loratool": record})
	if err != nil {
		t.Fatal(err)
	}
	f.writeFile(dir, "model.safetensors", append(l.Header(), make([]byte, l.Size()-int64(len(l.Header())))...))
	return openPath(t, dir)
}

// TestInputs compares inputs with the record of them, and finds one that is another,
// one that is missing, and no record.
func TestInputs(t *testing.T) {
	base, lora := tinyLlama(t), tinyLoRA(t)
	base.config = nil
	hash := func(f *fixture) string { return fmt.Sprintf("%x", sha256.Sum256(f.weights(f.specs))) }
	lora.values[lora.specs[0].Name][0] = 1
	a := openPath(t, base.write())
	record := fmt.Sprintf(`{"inputs": [{"role": "base", "sha256": {"model.safetensors": %q}}]}`, hash(base))
	wantFound(t, provenance(t, recorded(t, record), a), nil)
	wantFound(t, provenance(t, recorded(t, record)), nil) // nothing to compare with
	other := tinyLlama(t)
	other.config = nil
	other.values["lm_head.weight"][0]++
	wantFound(t, provenance(t, recorded(t, record), openPath(t, other.write())), []string{"input-differs", "input-not-given"})
	wantFound(t, provenance(t, recorded(t, record), a, openPath(t, other.write())), []string{"input-differs"})
	two := strings.Replace(record, "}}]", fmt.Sprintf(`}}, {"sha256": {"adapter_model.safetensors": %q}}]`, hash(lora)), 1)
	wantFound(t, provenance(t, recorded(t, two), a), []string{"input-not-given"})
	wantFound(t, provenance(t, openPath(t, tinyLlama(t).write()), a), []string{"record-missing"})
	for _, broken := range []string{"", "[]", `{"inputs": 1}`, `{"inputs": [1]}`, `{"inputs": [{}]}`, `{"inputs": [{"sha256": {"a": 1}}]}`} {
		wantFound(t, provenance(t, recorded(t, broken), a), []string{"record-unreadable"})
	}
}

// TestProvenanceCodes guards that each code of the family has a defect that shows it.
func TestProvenanceCodes(t *testing.T) {
	TestSums(t)
	TestInputs(t)
	TestManifestOfFolder(t)
	for _, c := range verify.Codes() {
		if c.Family == "provenance" && !provenanceCaught[c.Name] {
			t.Errorf("no planted defect shows %q", c.Name)
		}
	}
}
