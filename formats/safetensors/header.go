package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/internal/strictjson"
)

// minEntrySize is the length of the shortest entry, with its comma. It bounds
// the tensors a header can hold.
const minEntrySize = len(`"":{"dtype":"U8","shape":[],"data_offsets":[0,1]},`)

// readHeader returns the header's bytes, after checking that their number is
// allowed and that the file has them.
func readHeader(r *saferead.Reader) ([]byte, error) {
	start, err := r.Bytes(0, min(r.Size(), sniffSize))
	if err != nil {
		return nil, fmt.Errorf("reading the start: %w", err)
	}
	if len(start) < lengthSize {
		return nil, notSafetensors(start, fmt.Sprintf("file has %d bytes, too few for a header", len(start)))
	}
	length := binary.LittleEndian.Uint64(start)
	switch {
	case length > maxHeaderSize:
		return nil, notSafetensors(start, fmt.Sprintf("header length %d is above the limit of %d", length, maxHeaderSize))
	case int64(length) > r.Size()-lengthSize:
		return nil, notSafetensors(start, fmt.Sprintf("header of %d bytes runs past the end of the file, which has %d", length, r.Size()))
	case length == 0:
		return nil, notSafetensors(start, "header length is 0")
	}
	// A claim over a hole is found out here, before 100 MB of it are read.
	seen := start[lengthSize:min(uint64(len(start)), lengthSize+length)]
	if text := bytes.TrimLeft(seen, " \t\r\n"); len(text) > 0 && text[0] != '{' {
		return nil, notSafetensors(start, fmt.Sprintf("header starts with byte 0x%02x, not with '{'", text[0]))
	}
	header, err := r.Bytes(lengthSize, int64(length))
	if err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	return header, nil
}

// headerParser walks the header once, token by token.
type headerParser struct {
	header     []byte
	scanner    *strictjson.Scanner
	dataOffset int64 // of the data section in the file
	dataSize   int64
	tensors    []Tensor // in the order of the header
	ends       []int64  // of the tensors, in the file
	metadata   metadata
	name       string // of the tensor being read, for errors
	dims       []int64
	shapes     shapeArena
}

// parseHeader returns the tensors in data order. They cover the data section
// of the file, which has size bytes, exactly.
func parseHeader(header []byte, size int64) ([]Tensor, metadata, error) {
	// The count is bounded twice: braces in names must not reserve memory.
	limit := min(bytes.Count(header, []byte("{")), len(header)/minEntrySize+1)
	p := &headerParser{
		header:     header,
		scanner:    strictjson.NewScanner(header),
		dataOffset: lengthSize + int64(len(header)),
		dataSize:   size - lengthSize - int64(len(header)),
		tensors:    make([]Tensor, 0, limit),
		ends:       make([]int64, 0, limit),
	}
	if err := p.members(); err != nil {
		return nil, nil, err
	}
	tensors, err := p.tile()
	return tensors, p.metadata, err
}

// members reads the whole header.
func (p *headerParser) members() error {
	if err := p.expect(strictjson.KindObject, "header"); err != nil {
		return err
	}
	for {
		t, err := p.next()
		if err != nil {
			return err
		}
		if t.Kind == strictjson.KindObjectEnd {
			_, err := p.next() // fails unless only white space is left
			return err
		}
		if string(t.Text) == metadataKey {
			err = p.readMetadata()
		} else {
			err = p.readTensor(t)
		}
		if err != nil {
			return err
		}
	}
}

// tile returns the tensors sorted by place, and proves that they cover the
// data section without hole, overlap or rest.
func (p *headerParser) tile() ([]Tensor, error) {
	tensors, ends := p.tensors, p.ends
	order := make([]int32, len(tensors))
	for i := range order {
		order[i] = int32(i)
	}
	// An empty tensor belongs before the one that starts in the same place.
	slices.SortFunc(order, func(i, j int32) int {
		return cmp.Or(
			cmp.Compare(tensors[i].Offset, tensors[j].Offset),
			cmp.Compare(ends[i], ends[j]),
			strings.Compare(tensors[i].Name, tensors[j].Name))
	})
	sorted := make([]Tensor, len(tensors))
	end := p.dataOffset
	for i, place := range order {
		t := tensors[place]
		switch {
		case t.Offset < end:
			return nil, &FormatError{Offset: t.Offset, Tensor: t.Name,
				Reason: fmt.Sprintf("data overlaps the tensor before by %d bytes", end-t.Offset)}
		case t.Offset > end:
			return nil, &FormatError{Offset: end, Tensor: t.Name,
				Reason: fmt.Sprintf("%d bytes before the data belong to no tensor", t.Offset-end)}
		}
		sorted[i] = t
		end = ends[place]
	}
	if rest := p.dataOffset + p.dataSize - end; rest > 0 {
		return nil, &FormatError{Offset: end, Reason: fmt.Sprintf("%d bytes after the data belong to no tensor", rest)}
	}
	return sorted, nil
}

// expect consumes a token that must be of the given kind.
func (p *headerParser) expect(kind strictjson.Kind, what string) error {
	_, err := p.want(kind, what)
	return err
}

func (p *headerParser) want(kind strictjson.Kind, what string) (strictjson.Token, error) {
	t, err := p.next()
	if err == nil && t.Kind != kind {
		err = p.errorAt(t.Offset, fmt.Sprintf("%s is %s, not %s", what, t.Kind, kind))
	}
	return t, err
}

func (p *headerParser) next() (strictjson.Token, error) {
	t, err := p.scanner.Next()
	if err == nil {
		return t, nil
	}
	if se, ok := errors.AsType[*strictjson.SyntaxError](err); ok {
		return t, p.errorAt(se.Offset, "header is not strict JSON: "+se.Reason)
	}
	return t, err
}

// errorAt reports a fault at an offset of the header.
func (p *headerParser) errorAt(offset int64, reason string) error {
	return &FormatError{Offset: lengthSize + offset, Tensor: p.name, Reason: reason}
}
