package mix_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/quant/mix"
)

var (
	liveTool = flag.String("quantize", "", "the reference's llama-quantize, to be compared on random models")
	liveRuns = flag.Int("runs", 500, "how many random models it is asked about")
	liveSeed = flag.Uint64("seed", 1, "the first of them")
)

// Random models, options and shapes get the types that the reference gives them in a dry
// run: go test ./quant/mix -run Live -quantize llama-quantize.
func TestLive(t *testing.T) {
	if *liveTool == "" {
		t.Skip("no -quantize")
	}
	path := filepath.Join(t.TempDir(), "model.gguf")
	asked, refused := 0, 0
	for seed := *liveSeed; seed < *liveSeed+uint64(*liveRuns); seed++ {
		rng := rand.New(rand.NewPCG(seed, 0))
		m, tensors, o := randomModel(rng)
		keys := liveKeys(rng, &m)
		tensors = slices.DeleteFunc(tensors, func(s gguf.Spec) bool { return slices.Contains(s.Shape, 0) })
		if len(tensors) == 0 {
			continue
		}
		described, err := mix.ModelOf(keys)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		writeModel(t, path, keys, tensors)
		args := liveArgs(t, o)
		want, ok := ask(t, path, args)
		if !ok && want == nil {
			continue // the reference does not get as far as the tensors
		}
		asked++
		mix.Sort(tensors)
		got, err := mix.Plan(described, tensors, o)
		if !ok {
			refused++
		}
		if stopsDryRun(err) == ok {
			t.Errorf("seed %d, %q: %v, but the reference refuses: %v", seed, args, err, !ok)
		}
		for _, d := range got.Decisions {
			if ok && want[d.Name] != d.To.String() {
				t.Errorf("seed %d, %q, %+v: %s: %s (%s), want %s", seed, args, described, d.Name, d.To, d.Why, want[d.Name])
			}
		}
	}
	t.Logf("%d models of %d were compared, of which %d are refused", asked, *liveRuns, refused)
	if asked < *liveRuns/2 {
		t.Errorf("the reference read only %d of %d models", asked, *liveRuns)
	}
}

// liveKeys returns the keys that the reference wants of any model.
func liveKeys(rng *rand.Rand, m *mix.Model) *gguf.Metadata {
	m.Layers = max(m.Layers, 1)
	if rng.IntN(4) == 0 {
		m.Layers = 80
	}
	keys := metadata("general.architecture", m.Arch)
	if m.Arch == "clip" {
		return keys
	}
	m.HeadsKV = max(m.HeadsKV, 1)
	numbers := []struct {
		key string
		n   int64
	}{
		{"block_count", m.Layers}, {"context_length", 64}, {"embedding_length", 256}, {"feed_forward_length", 256},
		{"attention.head_count", m.HeadsKV * (1 + rng.Int64N(8))}, {"attention.head_count_kv", m.HeadsKV},
		{"expert_count", m.Experts}, {"expert_used_count", min(m.Experts, 1)}, {"expert_feed_forward_length", 256},
		{"leading_dense_block_count", 0}, {"attention.kv_lora_rank", 64}, {"attention.q_lora_rank", 64},
		{"attention.key_length", 64}, {"attention.value_length", 64}, {"attention.key_length_mla", 64},
		{"attention.value_length_mla", 64}, {"expert_shared_count", 1}, {"rope.dimension_count", 64}, {"expert_shared_feed_forward_length", 64},
	}
	for _, n := range numbers {
		keys.Set(m.Arch+"."+n.key, gguf.ValueOf(uint32(n.n)))
	}
	keys.Set(m.Arch+".attention.layer_norm_epsilon", gguf.ValueOf(float32(1e-5)))
	keys.Set(m.Arch+".attention.layer_norm_rms_epsilon", gguf.ValueOf(float32(1e-5)))
	return keys
}

// writeModel writes a file whose tensors are all zeros.
func writeModel(t *testing.T, path string, keys *gguf.Metadata, tensors []gguf.Spec) {
	t.Helper()
	layout, err := gguf.NewLayout(keys, tensors, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, layout.Header(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, layout.Size()); err != nil {
		t.Fatal(err)
	}
}

// liveArgs spells options as the reference's tool takes them.
func liveArgs(t *testing.T, o mix.Options) []string {
	t.Helper()
	var args []string
	if o.Pure {
		args = append(args, "--pure")
	}
	if o.LeaveOutput {
		args = append(args, "--leave-output-tensor")
	}
	if o.OutputType != nil {
		args = append(args, "--output-tensor-type", o.OutputType.String())
	}
	if o.EmbeddingType != nil {
		args = append(args, "--token-embedding-type", o.EmbeddingType.String())
	}
	for _, override := range o.Overrides {
		args = append(args, "--tensor-type", override.String())
	}
	if len(o.Matrix) > 0 {
		args = append(args, "--imatrix", "../../testdata/golden/gguf/imatrix.gguf") // any will do
	}
	return append(args, o.Type.String())
}

// liveLine is what the reference prints about a tensor: its name, its type, and the new
// one if it gets one.
var liveLine = regexp.MustCompile(`(?m)^\[ *\d+/ *\d+\] (.*?) +- \[.*type = +(\S+), size = .*?(?:\((\S+)\))?$`)

// liveError is why the reference gave up.
var liveError = regexp.MustCompile(`failed to quantize: .*|.*GGML_ASSERT.*|.*fatal error.*`)

// ask returns the types that the reference plans, or false if it refuses to: without any
// types if it fails before it looks at the tensors.
func ask(t *testing.T, path string, args []string) (map[string]string, bool) {
	t.Helper()
	fileType := args[len(args)-1]
	command := exec.Command(*liveTool, append(append([]string{"--dry-run"}, args[:len(args)-1]...), path, fileType)...)
	out, err := command.CombinedOutput()
	types := make(map[string]string)
	for _, m := range liveLine.FindAllStringSubmatch(string(out), -1) {
		types[m[1]] = m[2]
		if m[3] != "" {
			types[m[1]] = m[3]
		}
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return types, true
	case !errors.As(err, &exit):
		t.Fatal(err)
	case strings.Contains(string(out), "no tensor type fallback") || strings.Contains(string(out), "layer for tensor") ||
		strings.Contains(string(out), "Bad layer"):
		return types, false
	}
	if testing.Verbose() {
		fmt.Printf("not read: %q\n", liveError.FindString(string(out)))
	}
	return nil, false
}
