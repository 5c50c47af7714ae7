package mix_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/mix"
)

const golden = "../../testdata/golden/ggufmix"

// letters stand for types, by their numbers, in the golden files.
const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ"

// model is a model in the golden files.
type model struct {
	Name  string
	KV    [][2]json.RawMessage
	Kinds [][]json.RawMessage
	Order json.RawMessage
	Runs  map[string]*string
}

// keys returns the keys of the file.
func (m *model) keys(t testing.TB) *gguf.Metadata {
	t.Helper()
	keys := new(gguf.Metadata)
	for _, pair := range m.KV {
		var key string
		decode(t, pair[0], &key)
		keys.Set(key, value(t, pair[1]))
	}
	return keys
}

// value reads a value by the form it has in JSON: only floats have a point or exponent.
func value(t testing.TB, raw json.RawMessage) gguf.Value {
	t.Helper()
	var v any
	decode(t, raw, &v)
	switch v := v.(type) {
	case string:
		return gguf.ValueOf(v)
	case bool:
		return gguf.ValueOf(v)
	case float64:
		if strings.ContainsAny(string(raw), ".e") {
			return gguf.ValueOf(float32(v))
		}
		return gguf.ValueOf(uint32(v))
	}
	var numbers []uint32
	decode(t, raw, &numbers)
	return gguf.ArrayOf(numbers)
}

// tensors returns the tensors, kind by kind, and the number of each kind.
func (m *model) tensors(t testing.TB) (specs []gguf.Spec, counts []int) {
	t.Helper()
	for _, kind := range m.Kinds {
		var name, typ, blocks string
		var sizes tensor.Shape
		decode(t, kind[0], &name)
		decode(t, kind[1], &sizes)
		decode(t, kind[2], &typ)
		slices.Reverse(sizes) // the row is the first in the file
		parsed, err := gguf.ParseType(typ)
		if err != nil {
			t.Fatal(err)
		}
		numbers := []int{0}
		if len(kind) > 3 {
			decode(t, kind[3], &blocks)
			numbers = expand(t, blocks)
		}
		for _, n := range numbers {
			specs = append(specs, gguf.Spec{Name: strings.ReplaceAll(name, "*", strconv.Itoa(n)), Type: parsed, Shape: sizes})
		}
		counts = append(counts, len(numbers))
	}
	return specs, counts
}

// expand reads "2-4" or "0,3".
func expand(t testing.TB, text string) (numbers []int) {
	t.Helper()
	if first, last, ok := strings.Cut(text, "-"); ok {
		for n := atoi(t, first); n <= atoi(t, last); n++ {
			numbers = append(numbers, n)
		}
		return numbers
	}
	for part := range strings.SplitSeq(text, ",") {
		numbers = append(numbers, atoi(t, part))
	}
	return numbers
}

// types reads one word per kind, as "4o24m": the inverse of what the script writes.
func types(t testing.TB, words string, counts []int) (all []gguf.Type) {
	t.Helper()
	for i, word := range strings.Fields(words) {
		if len(word) == 1 {
			word = strconv.Itoa(counts[i]) + word
		}
		for word != "" {
			at := strings.IndexAny(word, letters)
			typ := gguf.Type(strings.IndexByte(letters, word[at]))
			all = append(all, slices.Repeat([]gguf.Type{typ}, atoi(t, word[:at]))...)
			word = word[at+1:]
		}
	}
	return all
}

// options reads the command line of the reference's tool: a file type and options.
func options(t testing.TB, line string) (o mix.Options) {
	t.Helper()
	words := strings.Fields(line)
	var err error
	if o.Type, err = mix.ParseFileType(words[0]); err != nil {
		t.Fatal(err)
	}
	typ := func(name string) *gguf.Type {
		parsed, err := gguf.ParseType(name)
		if err != nil {
			t.Fatal(err)
		}
		return &parsed
	}
	for i := 1; i < len(words); i++ {
		switch words[i] {
		case "--pure":
			o.Pure = true
		case "--leave-output-tensor":
			o.LeaveOutput = true
		case "--allow-requantize":
			o.AllowRequantize = true
		case "--imatrix":
			o.Matrix = map[string]int64{"of another model": 1}
		case "--output-tensor-type":
			i++
			o.OutputType = typ(words[i])
		case "--token-embedding-type":
			i++
			o.EmbeddingType = typ(words[i])
		case "--tensor-type":
			i++
			override, err := mix.ParseOverride(words[i])
			if err != nil {
				t.Fatal(err)
			}
			o.Overrides = append(o.Overrides, override)
		default:
			t.Fatalf("unknown option %s", words[i])
		}
	}
	return o
}

// Every tensor of every model must get the type that the reference's dry run tells, for
// every file type, with and without an importance matrix, and with options.
func TestMixes(t *testing.T) {
	var file struct{ Models []*model }
	decode(t, readFile(t, "mixes.json"), &file)
	runs, tensors := 0, 0
	for _, m := range file.Models {
		t.Run(m.Name, func(t *testing.T) {
			described, err := mix.ModelOf(m.keys(t))
			if err != nil {
				t.Fatal(err)
			}
			specs, counts := m.tensors(t)
			sorted := slices.Clone(specs)
			mix.Sort(sorted)
			m.checkOrder(t, sorted)
			for line, want := range m.Runs {
				got, err := mix.Plan(described, sorted, options(t, line))
				if stopsDryRun(err) != (want == nil) {
					t.Errorf("%s: %v, but the reference refuses: %v", line, err, want == nil)
				}
				if want == nil {
					continue
				}
				runs++
				compare(t, line, got, specs, types(t, *want, counts))
				tensors += len(specs)
			}
		})
	}
	if runs < 2500 || tensors < 300_000 {
		t.Errorf("only %d runs with %d tensors were compared", runs, tensors)
	}
}

// checkOrder compares the order of the names with the reference's: a list, or its hash.
func (m *model) checkOrder(t *testing.T, sorted []gguf.Spec) {
	t.Helper()
	if len(m.Order) == 0 {
		return // never told, as all runs are refused
	}
	var names, want []string
	for _, s := range sorted {
		names = append(names, s.Name)
	}
	if m.Order[0] == '[' {
		decode(t, m.Order, &want)
		if !slices.Equal(names, want) {
			t.Errorf("order\n%q, want\n%q", names, want)
		}
		return
	}
	var sum string
	decode(t, m.Order, &sum)
	got := sha256.Sum256([]byte(strings.Join(names, "\n")))
	if hex.EncodeToString(got[:]) != sum {
		t.Errorf("the order of %d names differs", len(names))
	}
}

// stopsDryRun reports whether an error holds a refusal that the reference's dry run finds
// too. It does not look at the rows of types that an option chose.
func stopsDryRun(err error) bool {
	var refused *mix.RefusalError
	if !errors.As(err, &refused) {
		return false
	}
	return slices.ContainsFunc(refused.Refusals, func(r mix.Refusal) bool {
		return r.Rule == mix.BadLayer || r.Rule == mix.NoFallback
	})
}

// compare compares the types of a plan with those of the reference, which are in the order
// of specs.
func compare(t *testing.T, line string, got *mix.Mix, specs []gguf.Spec, want []gguf.Type) {
	t.Helper()
	planned := make(map[string]mix.Decision)
	for _, d := range got.Decisions {
		planned[d.Name] = d
	}
	if len(want) != len(specs) || len(planned) != len(specs) {
		t.Fatalf("%s: %d decisions and %d types for %d tensors", line, len(planned), len(want), len(specs))
	}
	for i, s := range specs {
		if d := planned[s.Name]; d.To != want[i] {
			t.Errorf("%s: %s: %s (%s: %s), want %s", line, s.Name, d.To, d.Reason, d.Why, want[i])
		}
	}
}

// realRun is a run of the reference that was no dry run.
type realRun struct {
	Model    int
	Type     string
	Options  string
	Matrix   *int // of the file's list
	Refused  string
	Tensor   string
	Types    string
	FileType uint32 `json:"file_type"`
}

// What the reference refuses once it runs is refused, for the same reason; else
// types and keys of the file are the plan's.
func TestRuns(t *testing.T) {
	var file struct {
		LastKeys []string `json:"last_keys"`
		Models   []*model
		Matrices []map[string]int64
		Runs     []realRun
	}
	decode(t, readFile(t, "runs.json"), &file)
	for _, run := range file.Runs {
		m := file.Models[run.Model]
		name := fmt.Sprintf("%s %s on %s", run.Type, run.Options, m.Kinds)
		keys := m.keys(t)
		described, err := mix.ModelOf(keys)
		if err != nil {
			t.Fatal(err)
		}
		specs, _ := m.tensors(t)
		mix.Sort(specs)
		o := options(t, run.Type+" "+run.Options)
		if run.Matrix != nil {
			o.Matrix = file.Matrices[*run.Matrix]
		}
		got, err := mix.Plan(described, specs, o)
		if run.Refused != "" {
			if err := refusedLike(run, err); err != nil {
				t.Errorf("%s, matrix %v: %v", name, o.Matrix, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s, matrix %v: %v", name, o.Matrix, err)
			continue
		}
		unsorted, counts := m.tensors(t)
		compare(t, name, got, unsorted, types(t, strings.Join(strings.Split(run.Types, ""), " "), counts))
		if got.FileType != run.FileType {
			t.Errorf("%s: file type %d, want %d", name, got.FileType, run.FileType)
		}
		checkKeys(t, got, keys, file.LastKeys)
	}
	if len(file.Runs) < 300 {
		t.Errorf("only %d runs", len(file.Runs))
	}
}

// reasons gives the rules that the reference's words stand for. A failed assertion
// says nothing. If rows are not whole blocks, it writes what it finds in memory.
var reasons = []struct {
	words string
	rules []mix.Rule
}{
	{"this quantization requires an imatrix", []mix.Rule{mix.NeedsMatrix}},
	{"Missing importance matrix", []mix.Rule{mix.NeedsMatrix}},
	{"imatrix size", []mix.Rule{mix.WrongMatrix}},
	{"requantizing from type", []mix.Rule{mix.Requantize}},
	{"cannot dequantize/convert", []mix.Rule{mix.NoDecoder}},
	{"no dequantization available", []mix.Rule{mix.NoDecoder}},
	{"has invalid data", []mix.Rule{mix.NoDecoder}}, // of a type that it can't check
	{"no tensor type fallback", []mix.Rule{mix.NoFallback}},
	{"data validation failed", []mix.Rule{mix.PartialBlock}}, // of memory that was never written
	{"unreadable", []mix.Rule{mix.PartialBlock}},
	{"abort", []mix.Rule{mix.NeedsMatrix, mix.PartialBlock, mix.TooManyDims}},
}

// refusedLike says in what an error differs from the reference's.
func refusedLike(run realRun, err error) error {
	var refused *mix.RefusalError
	if !errors.As(err, &refused) {
		return fmt.Errorf("%w, want the refusal %q", err, run.Refused)
	}
	for _, reason := range reasons {
		if !strings.Contains(run.Refused, reason.words) {
			continue
		}
		if !slices.ContainsFunc(refused.Refusals, func(r mix.Refusal) bool {
			return slices.Contains(reason.rules, r.Rule) && (run.Tensor == "" || r.Tensor == run.Tensor)
		}) {
			return fmt.Errorf("%w (%s), want the refusal %q of %q", err, refused.Refusals[0].Rule, run.Refused, run.Tensor)
		}
		return nil
	}
	return fmt.Errorf("nobody knows the reason %q", run.Refused)
}

// checkKeys looks at the keys that a plan sets.
func checkKeys(t *testing.T, m *mix.Mix, before *gguf.Metadata, last []string) {
	t.Helper()
	after := before.Clone()
	m.SetKeys(after)
	var want, got []string
	for key := range before.All() {
		if !slices.Contains(last, key) {
			want = append(want, key)
		}
	}
	for key := range after.All() {
		got = append(got, key)
	}
	if want = append(want, last...); !slices.Equal(got, want) {
		t.Errorf("keys %q, want %q", got, want)
	}
	version, _ := after.Get("general.quantization_version")
	fileType, _ := after.Get("general.file_type")
	if !version.Equal(gguf.ValueOf(uint32(2))) || !fileType.Equal(gguf.ValueOf(m.FileType)) {
		t.Errorf("version %v, file type %v", version, fileType)
	}
}

func decode(t testing.TB, raw []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%.80s: %v", raw, err)
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(golden, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func atoi(t testing.TB, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
