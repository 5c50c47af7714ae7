package cli_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
)

// TestConvertTypes compares conversions to types of blocks, and split ones, with the files
// of llama.cpp's converter (testdata/gen/convert_types.py).
func TestConvertTypes(t *testing.T) {
	golden := filepath.Join("..", "..", "testdata", "golden")
	table, err := os.ReadFile(filepath.Join(golden, "convert", "types.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	convert := func(args ...string) {
		t.Helper()
		if code, _, stderr := run(fsatomic.OS{}, noEnv, append([]string{"convert"}, args...)...); code != 0 {
			t.Fatalf("%s: exit %d: %s", args, code, stderr)
		}
	}
	wide := filepath.Join(dir, "wide")
	convert(filepath.Join(golden, "ggufquant", "source-f16.gguf"), "-o", wide, "--no-provenance")
	pieces, err := os.ReadFile(filepath.Join(golden, "convert", "models", "linear", "tokenizer.model"))
	if err == nil {
		err = os.WriteFile(filepath.Join(wide, "tokenizer.model"), pieces, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	pres := preTokenizers(t, filepath.Join(golden, "convert", "cases.json"))
	for i, line := range strings.Split(strings.TrimSpace(string(table)), "\n") {
		fields := strings.Split(line, "\t")
		model, dtype, tensors, size, want := fields[0], fields[1], fields[2], fields[3], fields[4:]
		folder := filepath.Join(golden, "convert", "models", model)
		if model == "wide" {
			folder = wide
		}
		out := filepath.Join(dir, strconv.Itoa(i))
		args := []string{folder, "--dtype", dtype, "--verify"}
		switch {
		case tensors != "0":
			args = append(args, "-o", out, "--to", "gguf", "--shard-tensors", tensors)
		case size != "0":
			args = append(args, "-o", out, "--to", "gguf", "--shard-size", size+"B")
		default:
			args = append(args, "-o", out+".gguf")
		}
		if pre := pres[model]; pre != "" {
			args = append(args, "--pre", pre)
		}
		convert(args...)
		files, err := filepath.Glob(filepath.Join(out, "*.gguf"))
		if len(files) == 0 {
			files = []string{out + ".gguf"}
		}
		var got []string
		for _, f := range files {
			data, readErr := os.ReadFile(f)
			if err == nil {
				err = readErr
			}
			sum := sha256.Sum256(data)
			got = append(got, hex.EncodeToString(sum[:]))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s %s, %s tensors, %s bytes: %d files, of %d others; %v", model, dtype, tensors, size, len(got), len(want), err)
		}
	}
}

// preTokenizers are the names that a converter was given for models.
func preTokenizers(t *testing.T, path string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(path)
	var cases []struct{ Name, Pre string }
	if err == nil {
		err = json.Unmarshal(data, &cases)
	}
	if err != nil {
		t.Fatal(err)
	}
	pres := make(map[string]string)
	for _, c := range cases {
		pres[c.Name] = c.Pre
	}
	return pres
}
