package gguf_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
)

// FuzzOpen gives any bytes to the reader. Nothing may panic or take memory that
// the file does not explain; a refusal is one line; nothing is accepted that
// the reference refuses; what is accepted can be laid out anew, and comes out
// the same but for the bytes that a layout decides.
func FuzzOpen(f *testing.F) {
	for _, data := range seeds(f) {
		f.Add(data)
	}
	for _, c := range goldenCases(f) {
		if data := c.bytes(f); len(data) < 4096 {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var file *gguf.File
		var err error
		// 64 KiB to look at the file, and entries that take more than in it;
		// tests that run beside this one allocate too.
		if took := allocated(func() { file, err = open(data) }); took > 20*uint64(len(data))+4<<20 {
			t.Errorf("%d bytes of memory for a file of %d", took, len(data))
		}
		compareWithTwin(t, data, file, err)
		if err != nil {
			if _, ok := errors.AsType[*gguf.FormatError](err); !ok {
				t.Fatalf("error %v of type %T", err, err)
			}
			checkOneLine(t, err)
			return
		}
		if file.Alignment() > 1<<20 {
			return // the file would be padded to gigabytes
		}
		again := rewrite(t, file)
		sameContent(t, mustOpen(t, again), file)
		if !bytes.Equal(canonical(file, data), again) {
			t.Errorf("%d bytes become %d others", len(data), len(again))
		}
	})
}

// canonical returns the file with zeros for its padding, all of it, and without
// what follows.
func canonical(f *gguf.File, data []byte) []byte {
	l, err := gguf.NewLayout(f.Metadata(), specs(f.Tensors()), gguf.LayoutOptions{})
	if err != nil {
		return nil
	}
	out := make([]byte, l.Size())
	copy(out, data[:len(l.Header())])
	for _, s := range f.Tensors() {
		copy(out[s.Offset:], data[s.Offset:s.End()])
	}
	return out
}
