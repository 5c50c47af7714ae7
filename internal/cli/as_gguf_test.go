package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/internal/fsatomic"
)

// converted are the models of testdata/golden/convert and what llama.cpp's converter
// makes of them.
const converted = "../../testdata/golden/convert"

// asGGUFCases are all models, with the largest relative error that their types leave:
// Mixtral's F16 became BF16, which rounds a value by at most 2^-8 of it, so that a whole
// tensor is no farther off; F32 that became F16 by 2^-11 of it, and twice that is room for
// the few below the least normal F16. All others have types that hold the folder's values.
func asGGUFCases(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(converted, "expected", "*.gguf"))
	if err != nil || len(files) < 23 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	cases := make(map[string]string)
	for _, path := range files {
		cases[strings.TrimSuffix(filepath.Base(path), ".gguf")] = "0"
	}
	cases["mixtral"] = "0.00390625"
	cases["gpt2"], cases["bert-mean"] = "0.0009765625", "0.0009765625"
	return cases
}

// compareAsGGUF runs diff and returns its code and the tensors that are different.
func compareAsGGUF(t *testing.T, a, b, most string) (code int, different []string) {
	t.Helper()
	code, stdout, stderr := run(fsatomic.OS{}, noEnv, "diff", a, b, "--error", most, "--json")
	if code != 0 && code != 3 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var doc struct {
		Converted string
		Structure []struct{ Name string }
		Tensors   []struct {
			Name      string
			Different bool
		}
	}
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Structure) > 0 || !strings.Contains(doc.Converted, "is compared as the GGUF file it would become") {
		t.Errorf("structure %v, converted %q", doc.Structure, doc.Converted)
	}
	for _, d := range doc.Tensors {
		if d.Different {
			different = append(different, d.Name)
		}
	}
	return code, different
}

// TestDiffAsGGUF compares folders with the files that llama.cpp's converter made of them,
// in either order: nothing differs. Then one value of one tensor is another, and that
// tensor does.
func TestDiffAsGGUF(t *testing.T) {
	for name, most := range asGGUFCases(t) {
		t.Run(name, func(t *testing.T) {
			folder, file := filepath.Join(converted, "models", name), filepath.Join(converted, "expected", name+".gguf")
			for _, pair := range [][2]string{{folder, file}, {file, folder}} {
				if code, different := compareAsGGUF(t, pair[0], pair[1], most); code != 0 {
					t.Errorf("%v: exit %d, different: %v", pair, code, different)
				}
			}
			for hf, gguf := range planted {
				changed := t.TempDir()
				if err := os.CopyFS(changed, os.DirFS(folder)); err != nil {
					t.Fatal(err)
				}
				if !plant(t, changed, hf) {
					continue
				}
				if code, different := compareAsGGUF(t, changed, file, most); code != 3 || len(different) != 1 || different[0] != gguf {
					t.Errorf("a change of %s: exit %d, different: %v, want %s", hf, code, different, gguf)
				}
			}
		})
	}
}

// planted are tensors that are changed, and what they are in GGUF: one whose rows become
// pairs, one that is transposed, a norm, to which Gemma adds 1, and an expert of a stack.
var planted = map[string]string{
	"model.layers.0.self_attn.k_proj.weight":              "blk.0.attn_k.weight",
	"h.0.attn.c_attn.weight":                              "blk.0.attn_qkv.weight",
	"model.layers.0.input_layernorm.weight":               "blk.0.attn_norm.weight",
	"model.layers.0.block_sparse_moe.experts.1.w2.weight": "blk.0.ffn_down_exps.weight",
	"model.layers.0.mlp.experts.1.up_proj.weight":         "blk.0.ffn_up_exps.weight",
}

// plant flips the highest bit of the exponent of the last value of a tensor of a folder,
// which moves it by more than any type rounds; false if the folder has no such tensor.
func plant(t *testing.T, dir, name string) bool {
	t.Helper()
	m, err := checkpoint.Open(dir, hfrepo.Cache{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	spec, ok := m.Lookup(name)
	if !ok {
		return false
	}
	file, offset := m.Origin(name)
	path := filepath.Join(dir, file)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[offset+spec.Size()-1] ^= 0x40
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return true
}
