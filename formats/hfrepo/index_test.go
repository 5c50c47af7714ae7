package hfrepo_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/hfrepo"
)

// TestParseIndexRefuses guards the rules for shard names: one plain file name
// of the folder, in the format that the index is for, and nothing that could
// lead elsewhere on any system.
func TestParseIndexRefuses(t *testing.T) {
	shard := func(name string) string { return fmt.Sprintf(`{"weight_map":{"w":%q}}`, name) }
	for _, c := range []struct{ name, index, want string }{
		{"empty file", ``, ""},
		{"not an object", `[]`, "not an object"},
		{"rest behind the object", `{"weight_map":{"w":"a.safetensors"}} x`, ""},
		{"no weight_map", `{"metadata":{}}`, `"weight_map": missing`},
		{"weight_map is a list", `{"weight_map":["a.safetensors"]}`, `"weight_map"`},
		{"weight_map is empty", `{"weight_map":{}}`, "weight_map is empty"},
		{"shard is a number", `{"weight_map":{"w":7}}`, `tensor "w"`},
		{"shard is null", `{"weight_map":{"w":null}}`, `tensor "w"`},
		{"tensor twice, same shard", `{"weight_map":{"w":"a.safetensors","w":"a.safetensors"}}`, ""},
		{"tensor twice, escaped", `{"weight_map":{"w":"a.safetensors","\u0077":"b.safetensors"}}`, ""},
		{"weight_map twice", `{"weight_map":{"w":"a.safetensors"},"weight_map":{"w":"a.safetensors"}}`, ""},
		{"empty name", shard(""), "plain file name"},
		{"dot", shard("."), "plain file name"},
		{"dot dot", shard(".."), "plain file name"},
		{"parent", shard("../a.safetensors"), "plain file name"},
		{"deep traversal", shard("a/../../../b.safetensors"), "plain file name"},
		{"sub-folder", shard("sub/a.safetensors"), "plain file name"},
		{"absolute", shard("/tmp/a.safetensors"), "plain file name"},
		{"backslash", shard(`..\a.safetensors`), "plain file name"},
		{"drive", shard("C:a.safetensors"), "plain file name"},
		{"stream of a file", shard("a.safetensors:b.safetensors"), "plain file name"},
		{"zero byte", `{"weight_map":{"w":"a\u0000.safetensors"}}`, "plain file name"},
		{"line break", `{"weight_map":{"w":"a\n.safetensors"}}`, "plain file name"},
		{"pickle under a safetensors index", shard("pytorch_model-00001-of-00002.bin"), "pickle"},
		{"gguf", shard("a.gguf"), "not a .safetensors file"},
		{"no suffix", shard("model"), "not a .safetensors file"},
		{"suffix in capitals", shard("a.SAFETENSORS"), "not a .safetensors file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, err := hfrepo.ParseIndex([]byte(c.index))
			if err == nil {
				t.Fatalf("accepted with shards %q", x.Shards())
			}
			if text := err.Error(); !strings.Contains(text, c.want) || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("error %q, want one line with %q", text, c.want)
			}
		})
	}
}

func TestParseIndex(t *testing.T) {
	const text = `{
		"metadata": {"total_size": 96},
		"weight_map": {"z": "b.safetensors", "a": "a.safetensors", "m.\u00e9": "b.safetensors", "c": "c.safetensors"},
		"something": ["else"]
	}`
	x, err := hfrepo.ParseIndex([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if x.TotalSize != 96 {
		t.Errorf("total size %d, want 96", x.TotalSize)
	}
	if got, want := x.Tensors(), []string{"z", "a", "m.é", "c"}; !slices.Equal(got, want) {
		t.Errorf("tensors %q, want the file's order %q", got, want)
	}
	if got, want := x.Shards(), []string{"a.safetensors", "b.safetensors", "c.safetensors"}; !slices.Equal(got, want) {
		t.Errorf("shards %q, want each once and sorted %q", got, want)
	}
	if f, ok := x.File("m.é"); f != "b.safetensors" || !ok {
		t.Errorf("file %q, %v", f, ok)
	}
	if f, ok := x.File("q"); ok {
		t.Errorf("a tensor that is not listed is in %q", f)
	}
}

// TestTotalSize guards that the stated size is only a remark: absent, as a
// float or nonsense, the index is read all the same.
func TestTotalSize(t *testing.T) {
	for metadata, want := range map[string]int64{
		``: -1, `"metadata":{},`: -1, `"metadata":null,`: -1, `"metadata":{"total_size":7},`: 7,
		`"metadata":{"total_size":7.0},`: -1, `"metadata":{"total_size":"7"},`: -1, `"metadata":{"total_size":-1e99},`: -1,
	} {
		x, err := hfrepo.ParseIndex([]byte(`{` + metadata + `"weight_map":{"w":"a.safetensors"}}`))
		if err != nil {
			t.Errorf("%s: %v", metadata, err)
		} else if x.TotalSize != want {
			t.Errorf("%s: total size %d, want %d", metadata, x.TotalSize, want)
		}
	}
}

// TestEncodeIndex guards that what is written is read back, in the form of
// transformers.
func TestEncodeIndex(t *testing.T) {
	files := map[string]string{"a": "model-00001-of-00002.safetensors", "b\"\\": "model-00002-of-00002.safetensors"}
	data := hfrepo.EncodeIndex(12, []string{"a", "b\"\\"}, files)
	const want = `{
  "metadata": {
    "total_size": 12
  },
  "weight_map": {
    "a": "model-00001-of-00002.safetensors",
    "b\"\\": "model-00002-of-00002.safetensors"
  }
}
`
	if string(data) != want {
		t.Errorf("got\n%s\nwant\n%s", data, want)
	}
	x, err := hfrepo.ParseIndex(data)
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range files {
		if got, _ := x.File(name); got != file {
			t.Errorf("tensor %q is in %q, want %q", name, got, file)
		}
	}
}
