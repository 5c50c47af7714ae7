// Package testsuite tests loratool as a whole: command lines against data that
// the reference implementations made.
package testsuite_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/cli"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/quant/block"
)

const golden = "../../testdata/golden/peft"

// goldenCase is a case.json: an adapter made by PEFT, and in expected.safetensors
// the changed tensors of the merged model in float64, computed by PEFT itself
// and checked there against the trained model's outputs.
type goldenCase struct {
	name     string
	About    string
	Base     string
	Adapters []struct {
		Path   string
		Weight float64
	}
	Args    []string
	Removed []string
	Config  map[string]any
	Refused string
}

func goldenCases(t *testing.T) []goldenCase {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(golden, "cases", "*", "case.json"))
	if err != nil || len(files) < 100 {
		t.Fatalf("found %d golden cases (%v)", len(files), err)
	}
	var cases []goldenCase
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c := goldenCase{name: filepath.Base(filepath.Dir(f))}
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		cases = append(cases, c)
	}
	return cases
}

// args is the command line of a case, without its output.
func (c *goldenCase) args() []string {
	args := []string{"merge", "--base", filepath.Join(golden, "bases", c.Base)}
	for _, a := range c.Adapters {
		path := filepath.Join(golden, "cases", c.name, a.Path)
		if a.Weight != 1 {
			path = fmt.Sprintf("%s@%v", path, a.Weight)
		}
		args = append(args, "--adapter", path)
	}
	for i, a := range c.Args {
		if i > 0 && c.Args[i-1] == "--init-adapter" {
			a = filepath.Join(golden, "cases", c.name, a)
		}
		args = append(args, a)
	}
	return args
}

// run executes a command line in this process.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	app := &cli.App{Stdout: &out, Stderr: &errOut, Getenv: func(string) string { return "" }, FS: fsatomic.OS{}}
	code = app.Run(context.Background(), args)
	return code, out.String(), errOut.String()
}

// TestGoldenRefused has the adapters that no weights can stand for: exit 4,
// one line, nothing written.
func TestGoldenRefused(t *testing.T) {
	for _, c := range goldenCases(t) {
		if c.Refused == "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			code, stdout, stderr := run(t, append(c.args(), "-o", filepath.Join(dir, "out"))...)
			if code != 4 {
				t.Errorf("exit %d, want 4 (%s); stderr: %s", code, c.Refused, stderr)
			}
			first, _, _ := strings.Cut(stderr, "\n")
			if !strings.HasPrefix(first, "loratool: ") || stdout != "" {
				t.Errorf("stdout %q, stderr %q", stdout, stderr)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// roundoff64 bounds the relative error of the float64 path: 2^-53 for each of
// at most 2^10 operations that go into an element, and a factor 4 for the
// difference between an element and the largest of its tensor.
const roundoff64 = 0x1p-41

// roundoff32 bounds the error of the float32 path likewise, before the one
// rounding to the output: 2^-24 for each of at most 2^5 operations (the golden
// ranks are 8 and less).
const roundoff32 = 0x1p-19

// TestGolden merges every case in float64, where nothing but the formula can be
// wrong, and as the base is stored, where the result may be off by float32
// arithmetic and one rounding.
func TestGolden(t *testing.T) {
	for _, c := range goldenCases(t) {
		if c.Refused != "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			t.Run("f64", func(t *testing.T) {
				c.check(t, []string{"--dtype", "f64"}, func(_ tensor.DType, truth, largest float64) float64 {
					if strings.HasPrefix(c.Base, "fp8") {
						// The truth has products of codes and scales in float64; a weight of
						// FP8 is the product rounded to float32.
						return roundoff64*largest + halfUlp(tensor.F32, largest)
					}
					return roundoff64 * largest
				})
			})
			t.Run("stored", func(t *testing.T) {
				c.check(t, nil, func(d tensor.DType, truth, largest float64) float64 {
					return halfUlp(d, truth) + roundoff32*largest
				})
			})
		})
	}
}

// halfUlp is the largest error of rounding v to a type, to nearest.
func halfUlp(d tensor.DType, v float64) float64 {
	var digits, lowest int
	switch d {
	case tensor.F32:
		digits, lowest = 24, -149
	case tensor.F16:
		digits, lowest = 11, -24
	case tensor.BF16:
		digits, lowest = 8, -133
	default:
		return 0
	}
	_, exp := math.Frexp(v)
	return math.Ldexp(0.5, max(exp-digits, lowest))
}

// check merges a case and compares every tensor of the output: the changed ones
// with the truth, all others with the bytes of the base.
func (c *goldenCase) check(t *testing.T, flags []string, tolerance func(d tensor.DType, truth, largest float64) float64) {
	out := filepath.Join(t.TempDir(), "out")
	code, _, stderr := run(t, append(append(c.args(), "-q", "-o", out), flags...)...)
	if code != 0 {
		t.Fatalf("%s: exit %d: %s", c.About, code, stderr)
	}
	got := open(t, out)
	base := open(t, filepath.Join(golden, "bases", c.Base))
	truth := open(t, filepath.Join(golden, "cases", c.name, "expected.safetensors"))
	changed := make(map[string]bool)
	for _, s := range truth.Specs() {
		changed[s.Name] = true
		compare(t, got, truth, base, s, tolerance)
	}
	for _, s := range got.Specs() {
		if changed[s.Name] {
			continue
		}
		if _, ok := base.Lookup(s.Name); !ok {
			t.Errorf("%s is in neither the base nor the truth", s.Name)
		} else if flags == nil && !bytes.Equal(raw(t, got, s.Name), raw(t, base, s.Name)) {
			t.Errorf("%s should be the base's bytes", s.Name)
		}
	}
	c.checkMissing(t, got, base, changed)
	c.checkConfig(t, out)
}

// checkMissing looks for tensors of the base that the output lacks.
func (c *goldenCase) checkMissing(t *testing.T, got, base *checkpoint.Model, changed map[string]bool) {
	t.Helper()
	gone := make(map[string]bool)
	for _, name := range c.Removed {
		gone[name] = true
	}
	for _, s := range base.Specs() {
		_, ok := got.Lookup(s.Name)
		if !ok && !gone[s.Name] {
			t.Errorf("%s of the base is missing", s.Name)
		}
	}
}

// checkConfig compares the settings that the case names.
func (c *goldenCase) checkConfig(t *testing.T, out string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(out, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	for key, want := range c.Config {
		if _, ok := config["n_layer"]; ok && key == "num_hidden_layers" {
			key = "n_layer" // GPT-2 spells it so
		}
		if config[key] != want {
			t.Errorf("config.json: %s is %v, want %v", key, config[key], want)
		}
	}
}

// compare checks one tensor against its truth.
func compare(t *testing.T, got, truth, base *checkpoint.Model, s tensor.Spec, tolerance func(d tensor.DType, truth, largest float64) float64) {
	t.Helper()
	have, ok := got.Lookup(s.Name)
	if !ok || !have.Shape.Equal(s.Shape) {
		t.Errorf("%s: shape %v, want %v", s.Name, have.Shape, s.Shape)
		return
	}
	want, values := decode(t, truth, s.Name), decode(t, got, s.Name)
	largest := 0.0
	for _, v := range want {
		largest = max(largest, math.Abs(v))
	}
	if b, ok := base.Lookup(s.Name); ok && b.DType.IsFloat() {
		for _, v := range decode(t, base, s.Name) {
			largest = max(largest, math.Abs(v))
		}
	}
	for i := range want {
		if limit := tolerance(have.DType, want[i], largest); !(math.Abs(values[i]-want[i]) <= limit) {
			t.Errorf("%s[%d] is %v, want %v within %.3g (off by %.3g)", s.Name, i, values[i], want[i], limit, values[i]-want[i])
			return
		}
	}
}

// TestGoldenBF16 compares with what PEFT writes when it merges a bf16 model in
// the ordinary way. Where PEFT rounds once, both are the nearest bf16 to the
// truth. Where it rounds twice (its delta of stacked experts is cast to bf16
// before it is added), ours must not be farther from the truth.
func TestGoldenBF16(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(golden, "cases", "*", "expected_bf16.safetensors"))
	if err != nil || len(files) == 0 {
		t.Fatal("no bf16 cases")
	}
	for _, c := range goldenCases(t) {
		peftFile := filepath.Join(golden, "cases", c.name, "expected_bf16.safetensors")
		if _, err := os.Stat(peftFile); err != nil {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			if code, _, stderr := run(t, append(c.args(), "-q", "-o", out)...); code != 0 {
				t.Fatalf("exit %d: %s", code, stderr)
			}
			got, peft := open(t, out), open(t, peftFile)
			truth := open(t, filepath.Join(golden, "cases", c.name, "expected.safetensors"))
			for _, s := range truth.Specs() {
				ours, theirs, want := decode(t, got, s.Name), decode(t, peft, s.Name), decode(t, truth, s.Name)
				differ, worse := 0, 0
				for i := range want {
					if ours[i] != theirs[i] {
						differ++
					}
					// The float32 sum may fall on the other side of a tie.
					if math.Abs(ours[i]-want[i]) > math.Abs(theirs[i]-want[i])+roundoff32 {
						worse++
					}
				}
				if worse > 0 {
					t.Errorf("%s: %d of %d elements are farther from the truth than PEFT's", s.Name, worse, len(want))
				}
				if differ > 0 && !strings.Contains(s.Name, "experts") {
					t.Errorf("%s: %d of %d elements differ from PEFT's, which rounds once here", s.Name, differ, len(want))
				}
			}
		})
	}
}

func open(t *testing.T, path string) *checkpoint.Model {
	t.Helper()
	m, err := checkpoint.Open(path, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func raw(t *testing.T, m *checkpoint.Model, name string) []byte {
	t.Helper()
	s, ok := m.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %q", name)
	}
	r, err := m.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.NewSectionReader(r, 0, s.Size()))
	if err != nil || int64(len(data)) != s.Size() {
		t.Fatalf("reading %q: %d bytes, %v", name, len(data), err)
	}
	return data
}

func decode(t *testing.T, m *checkpoint.Model, name string) []float64 {
	t.Helper()
	s, _ := m.Lookup(name)
	codec, ok := block.For(s.DType)
	if !ok {
		t.Fatalf("%q is %s", name, s.DType)
	}
	values := make([]float64, s.NumElements())
	codec.Decode64(values, raw(t, m, name))
	return values
}
