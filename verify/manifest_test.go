package verify_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/verify"
)

func manifest(t *testing.T, dir string, o engine.Options) *verify.Manifest {
	t.Helper()
	list, err := verify.NewManifest(t.Context(), openPath(t, dir), o)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestManifest hashes the bytes that a test made itself, and has the same list for any
// jobs and any shards.
func TestManifest(t *testing.T) {
	f := tinyLlama(t)
	list := manifest(t, f.write(), engine.Options{Jobs: 1})
	if len(list.Tensors) != len(f.specs) {
		t.Errorf("%d tensors, want %d", len(list.Tensors), len(f.specs))
	}
	for _, e := range list.Tensors {
		s := f.specs[f.index(e.Name)]
		want := verify.ManifestEntry{Name: e.Name, DType: "bf16", Shape: s.Shape, SHA256: fmt.Sprintf("%x", sha256.Sum256(encode(s.DType, f.values[e.Name])))}
		if !reflect.DeepEqual(e, want) {
			t.Errorf("%+v, want %+v", e, want)
		}
	}
	if other := manifest(t, f.writeSharded(f.size()), engine.Options{Jobs: 4}); !reflect.DeepEqual(other, list) {
		t.Error("in shards the manifest is another")
	}
}

// TestManifestOfFolder plants what can differ from a manifest.json.
func TestManifestOfFolder(t *testing.T) {
	const norm = "model.norm.weight"
	for _, c := range []struct {
		name string
		edit func(f *fixture)                 // of the folder, after the list was made
		list func(m *verify.Manifest)         // of the list
		text func(text string) string         // of the file
		make func(f *fixture) (folder string) // nil writes it as it is
		want []string
	}{
		{name: "clean"},
		{name: "clean, shards", make: func(f *fixture) string { return f.writeSharded(f.size()) }},
		{name: "clean, codes", make: func(f *fixture) string { return f.quantize(quant.Options{Type: quant.NF4}) }},
		{name: "clean, upper case", list: func(m *verify.Manifest) { m.Tensors[0].SHA256 = strings.ToUpper(m.Tensors[0].SHA256) }},
		{name: "one value", edit: func(f *fixture) { f.values[norm][3] *= -1 }, want: []string{"manifest-differs " + norm}},
		{name: "shape", list: func(m *verify.Manifest) { m.Tensors[0].Shape = []int64{32, 12} }, want: []string{"manifest-differs lm_head.weight"}},
		{name: "type", list: func(m *verify.Manifest) { m.Tensors[0].DType = "f16" }, want: []string{"manifest-differs lm_head.weight"}},
		{name: "gone", edit: func(f *fixture) { f.remove(norm) }, want: []string{"manifest-missing " + norm}},
		{name: "more", list: func(m *verify.Manifest) { m.Tensors = m.Tensors[1:] }, want: []string{"manifest-extra lm_head.weight"}},
		{name: "twice", list: func(m *verify.Manifest) { m.Tensors[1] = m.Tensors[0] }, want: []string{"manifest-unreadable"}},
		{name: "no hash", list: func(m *verify.Manifest) { m.Tensors[1].SHA256 = "00" }, want: []string{"manifest-unreadable"}},
		{name: "cut off", text: func(s string) string { return s[:len(s)/2] }, want: []string{"manifest-unreadable"}},
		{name: "another version", text: func(s string) string { return strings.Replace(s, "manifest/v1", "manifest/v12", 1) }, want: []string{"manifest-unreadable"}},
		{name: "somebody else's", text: func(string) string { return `{"schema": "theirs", "tensors": []}` }},
		{name: "no JSON, somebody else's", text: func(string) string { return "x" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := tinyLlama(t)
			if c.make == nil {
				c.make = (*fixture).write
			}
			list := manifest(t, c.make(f), engine.Options{})
			if c.edit != nil {
				c.edit(f)
			}
			if c.list != nil {
				c.list(list)
			}
			data, err := json.Marshal(list)
			if err != nil {
				t.Fatal(err)
			}
			text := string(data)
			if c.text != nil {
				text = c.text(text)
			}
			dir := c.make(f)
			if err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(text), 0o666); err != nil {
				t.Fatal(err)
			}
			wantFound(t, provenance(t, openPath(t, dir)), c.want)
		})
	}
}
