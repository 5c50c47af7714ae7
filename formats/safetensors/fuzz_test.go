package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	judge "github.com/nlpodyssey/safetensors"

	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
)

// FuzzOpen gives any bytes to the reader. Nothing may panic; a refusal is one
// line; what is accepted can be laid out anew, read back equal, and be read by
// an independent reader that is known to be less strict.
func FuzzOpen(f *testing.F) {
	for _, c := range hostileCases(f) {
		data, err := os.ReadFile(filepath.Join(hostile, c.File))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, false)
		if len(data) > 8 {
			f.Add(data[8:], true)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, addLength bool) {
		if addLength { // lets the fuzzer change the header without breaking the length
			end := bytes.LastIndexByte(data, '}') + 1
			data = append(binary.LittleEndian.AppendUint64(nil, uint64(end)), data...)
		}
		file, err := open(data)
		if err != nil {
			if _, ok := errors.AsType[*safetensors.FormatError](err); !ok {
				t.Fatalf("error %v of type %T", err, err)
			}
			checkOneLine(t, err)
			return
		}
		if _, err := judge.Deserialize(data); err != nil && !unknownToJudge(file, err) {
			t.Errorf("accepted, but the judge says: %v", err)
		}
		layout, err := safetensors.NewLayout(specs(file.Tensors()), file.Metadata())
		if err != nil {
			t.Fatalf("laying out: %v", err)
		}
		again, err := open(assemble(t, layout, func(s tensor.Spec) []byte { return sectionBytes(t, file, s.Name) }))
		if err != nil {
			t.Fatalf("reading back: %v", err)
		}
		if !maps.Equal(again.Metadata(), file.Metadata()) || (again.Metadata() == nil) != (file.Metadata() == nil) {
			t.Errorf("metadata %v, want %v", again.Metadata(), file.Metadata())
		}
		if got, want := byName(again), byName(file); !reflect.DeepEqual(got, want) {
			t.Errorf("tensors %v, want %v", got, want)
		}
		for _, s := range file.Tensors() {
			if !bytes.Equal(sectionBytes(t, again, s.Name), sectionBytes(t, file, s.Name)) {
				t.Errorf("tensor %q has other bytes", s.Name)
			}
		}
		if got, want := again.Size()-again.DataOffset(), file.Size()-file.DataOffset(); got != want {
			t.Errorf("%d bytes of data, want %d", got, want)
		}
	})
}

func byName(f *safetensors.File) []tensor.Spec {
	list := specs(f.Tensors())
	slices.SortFunc(list, func(a, b tensor.Spec) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// unknownToJudge reports whether the judge has a known reason to refuse a
// valid file.
func unknownToJudge(f *safetensors.File, err error) bool {
	for _, s := range f.Tensors() {
		if _, unknown := judge.ParseDType(s.DType.Safetensors()); unknown != nil {
			return true
		}
	}
	// It can't tell the empty tensors in one place apart from wrong order.
	return strings.Contains(err.Error(), "invalid metadata offset")
}
