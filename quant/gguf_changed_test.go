package quant_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/block"
)

// odd is a GGUF model with tensors in three types, one of them useless without an
// importance matrix.
func odd(t *testing.T) *checkpoint.Model {
	t.Helper()
	keys := new(gguf.Metadata)
	keys.Set("general.architecture", gguf.ValueOf("toy"))
	path := filepath.Join(t.TempDir(), "m.gguf")
	l, err := checkpoint.NewGGUFLayout(path, []gguf.Spec{
		{Name: "z.weight", Type: gguf.Q8_0, Shape: tensor.Shape{2, 256}},
		{Name: "a.weight", Type: gguf.IQ2XXS, Shape: tensor.Shape{2, 256}},
		{Name: "m.weight", Type: gguf.F16, Shape: tensor.Shape{2, 256}},
	}, keys, checkpoint.GGUFOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return writeZeros(t, l)
}

// changes is a merge of some tensors: all numbers are 1.
func changes(d tensor.DType, names ...string) *checkpoint.Memory {
	m := new(checkpoint.Memory)
	codec, _ := block.For(d)
	for _, name := range names {
		s := spec(name, d, 2, 256)
		data := make([]byte, s.Size())
		ones := make([]float32, s.NumElements())
		for i := range ones {
			ones[i] = 1
		}
		codec.Encode32(data, ones)
		m.Add(s, data)
	}
	return m
}

// TestKeep guards that every tensor keeps its place and its type, that what nothing
// changes keeps its bytes, and that what changes is what the type makes of it.
func TestKeep(t *testing.T) {
	base := odd(t)
	q, err := quant.PlanGGUF(base, quant.GGUFOptions{Output: "out.gguf", Keep: true, Changed: changes(tensor.F32, "z.weight")})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, s := range q.Layout.Files[0].GGUF().Tensors() {
		order = append(order, s.Name+" "+s.Type.String())
	}
	if got := strings.Join(order, ", "); got != "z.weight q8_0, a.weight iq2_xxs, m.weight f16" {
		t.Errorf("the output has %s", got)
	}
	for _, s := range q.View.Specs() {
		want := readAll(t, base.Stored(), s)
		if s.Name == "z.weight" {
			ones := make([]float32, 512)
			for i := range ones {
				ones[i] = 1
			}
			if err := block.GGML(gguf.Q8_0).Quantize(want, ones, 256, nil); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(readAll(t, q.View, s), want) {
			t.Errorf("%s has other bytes", s.Name)
		}
	}
	if got, want := q.Layout.Files[0].GGUF().Metadata(), base.GGUF().Metadata(); got.Len() != want.Len() {
		t.Errorf("%d keys, %d before", got.Len(), want.Len())
	}
}

// TestKeepRefused guards that a type that can't be written again stops it before
// anything is, and only where the tensor changes.
func TestKeepRefused(t *testing.T) {
	base := odd(t)
	_, err := quant.PlanGGUF(base, quant.GGUFOptions{Output: "out.gguf", Keep: true, Changed: changes(tensor.F32, "a.weight")})
	if err == nil || !strings.Contains(err.Error(), "a.weight") || !strings.Contains(err.Error(), "--imatrix") {
		t.Errorf("got %v", err)
	}
	if _, err := quant.PlanGGUF(base, quant.GGUFOptions{Output: "out.gguf", Keep: true, Changed: changes(tensor.F16, "m.weight")}); err != nil {
		t.Error(err)
	}
}

// writeZeros writes a layout whose tensors are zeros, and opens it.
func writeZeros(t *testing.T, l *checkpoint.Layout) *checkpoint.Model {
	t.Helper()
	sink, err := checkpoint.Create(fsatomic.OS{}, l, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l.Files[0].Tensors() {
		if err := sink.WriteAt(s.Name, make([]byte, s.Size()), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := sink.Commit(nil); err != nil {
		t.Fatal(err)
	}
	return open(t, l.Path)
}
