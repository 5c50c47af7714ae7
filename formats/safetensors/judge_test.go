package safetensors_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	judge "github.com/nlpodyssey/safetensors"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// Whatever is written must be read by an independent reader with the same
// names, types, shapes and bytes.
func TestLayoutIsReadByOthers(t *testing.T) {
	var known []tensor.DType
	for _, d := range tensor.All() {
		if _, err := judge.ParseDType(d.Safetensors()); err == nil {
			known = append(known, d)
		}
	}
	if len(known) != 13 {
		t.Fatalf("the judge knows %d dtypes", len(known))
	}
	random := rand.New(rand.NewPCG(3, 4))
	for round := range 50 {
		declared, data, metadata := randomTensors(t, random, known)
		l, err := safetensors.NewLayout(declared, metadata)
		if err != nil {
			t.Fatal(err)
		}
		out := assemble(t, l, func(s tensor.Spec) []byte { return data[s.Name] })
		judged, err := judge.Deserialize(out)
		if err != nil {
			t.Fatalf("round %d: the judge refuses: %v", round, err)
		}
		if judged.Len() != len(declared) {
			t.Errorf("round %d: %d tensors, want %d", round, judged.Len(), len(declared))
		}
		for _, s := range declared {
			view, ok := judged.Tensor(s.Name)
			if !ok {
				t.Fatalf("round %d: no tensor %q", round, s.Name)
			}
			sameShape := slices.EqualFunc(view.Shape(), s.Shape, func(a uint64, b int64) bool { return a == uint64(b) })
			if view.DType().String() != s.DType.Safetensors() || !sameShape || !bytes.Equal(view.Data(), data[s.Name]) {
				t.Errorf("round %d: tensor %q: %v %v, want %v %v", round, s.Name, view.DType(), view.Shape(), s.DType, s.Shape)
			}
		}
		_, header, err := judge.ReadMetadata(out)
		if err != nil || !maps.Equal(header.Metadata(), metadata) {
			t.Errorf("round %d: metadata %v %v, want %v", round, header.Metadata(), err, metadata)
		}
		f := mustOpen(t, out)
		for _, s := range declared {
			if got := sectionBytes(t, f, s.Name); !bytes.Equal(got, data[s.Name]) {
				t.Errorf("round %d: tensor %q reads back as other bytes", round, s.Name)
			}
		}
	}
}

// And what the other one writes must be read here.
func TestFileReadsOthers(t *testing.T) {
	views := map[string]judge.TensorView{}
	for i, d := range []judge.DType{judge.BF16, judge.F32, judge.BOOL, judge.I64} {
		data := bytes.Repeat([]byte{byte(i + 1)}, int(6*d.Size()))
		view, err := judge.NewTensorView(d, []uint64{2, 3}, data)
		if err != nil {
			t.Fatal(err)
		}
		views[fmt.Sprint("layer.", i)] = view
	}
	out, err := judge.Serialize(views, map[string]string{"format": "pt"})
	if err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, out)
	if len(f.Tensors()) != len(views) || f.Metadata()["format"] != "pt" {
		t.Errorf("tensors %v, metadata %v", f.Tensors(), f.Metadata())
	}
	for name, view := range views {
		if got := sectionBytes(t, f, name); !bytes.Equal(got, view.Data()) {
			t.Errorf("tensor %q: %v, want %v", name, got, view.Data())
		}
	}
}

func randomTensors(t *testing.T, random *rand.Rand, dtypes []tensor.DType) ([]tensor.Spec, map[string][]byte, map[string]string) {
	t.Helper()
	var declared []tensor.Spec
	data := map[string][]byte{}
	for range random.IntN(12) {
		name := randomText(random)
		if _, twice := data[name]; twice {
			continue
		}
		shape := make([]int64, random.IntN(4))
		for i := range shape {
			shape[i] = random.Int64N(5)
		}
		s := spec(t, name, dtypes[random.IntN(len(dtypes))], shape...)
		p := make([]byte, s.Size())
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		declared = append(declared, s)
		data[name] = p
	}
	metadata := map[string]string{}
	for range random.IntN(4) {
		metadata[randomText(random)] = randomText(random)
	}
	if len(metadata) == 0 {
		metadata = nil
	}
	return declared, data, metadata
}

// randomText returns short text that needs escapes more often than not.
func randomText(random *rand.Rand) string {
	alphabet := []rune("abc.\"\\/\x00\x1f\x7f\n\té重\u2028\U0001F600")
	text := make([]rune, random.IntN(8))
	for i := range text {
		text[i] = alphabet[random.IntN(len(alphabet))]
	}
	return string(text)
}
