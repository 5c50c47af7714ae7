package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/loratool/loratool/internal/saferead"
)

// The shortest entries: a key of one byte with a value of one byte, and a
// tensor without name and dimensions. They bound the counts of the header.
const (
	minPairSize   = 8 + 1 + 4 + 1
	minTensorSize = 8 + 4 + 4 + 8
)

// headerParser reads the header once, from front to back.
type headerParser struct {
	*cursor
	version   uint32
	tensors   []Tensor // offsets count from the data section until place
	byName    map[string]int32
	metadata  Metadata
	alignment int64
	key       string // being read, for errors
	name      string // of the tensor being read, for errors
	shapes    shapeArena
}

// parseHeader reads everything before the data. The tensors it returns lie in
// the file, one behind the other.
func parseHeader(r *saferead.Reader) (*headerParser, error) {
	p := &headerParser{cursor: newCursor(r), alignment: DefaultAlignment}
	err := p.parse()
	if fe, ok := errors.AsType[*FormatError](err); ok {
		fe.Key, fe.Tensor = p.key, p.name
	}
	return p, err
}

func (p *headerParser) parse() error {
	tensors, keys, err := p.start()
	if err != nil {
		return err
	}
	for range keys {
		if err := p.readPair(); err != nil {
			return err
		}
	}
	if err := p.readTensors(tensors); err != nil {
		return err
	}
	return p.place()
}

// start reads the first bytes, up to the counts of tensors and keys.
func (p *headerParser) start() (tensors, keys uint64, err error) {
	b, err := p.peek(int(min(headerSize, p.left())))
	if err != nil {
		return 0, 0, err
	}
	if !bytes.HasPrefix(b, []byte(magic)) {
		return 0, 0, &FormatError{Reason: notGGUF(b)}
	}
	if len(b) < headerSize {
		return 0, 0, &FormatError{Reason: fmt.Sprintf("file has %d bytes, too few for a header", len(b))}
	}
	p.version = binary.LittleEndian.Uint32(b[4:])
	if reason := checkVersion(p.version); reason != "" {
		return 0, 0, &FormatError{Offset: 4, Reason: reason}
	}
	tensors, keys = binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	p.skip(headerSize)
	switch {
	case tensors > uint64(p.left())/minTensorSize:
		return 0, 0, &FormatError{Offset: 8, Reason: fmt.Sprintf("%d tensors are more than a file of %d bytes can list", tensors, p.r.Size())}
	case keys > uint64(p.left())/minPairSize:
		return 0, 0, &FormatError{Offset: 16, Reason: fmt.Sprintf("%d keys are more than a file of %d bytes can list", keys, p.r.Size())}
	case tensors > maxTensors:
		return 0, 0, &FormatError{Offset: 8, Reason: fmt.Sprintf("%d tensors are above the limit of %d", tensors, maxTensors)}
	case keys > maxKeys:
		return 0, 0, &FormatError{Offset: 16, Reason: fmt.Sprintf("%d keys are above the limit of %d", keys, maxKeys)}
	}
	return tensors, keys, nil
}

// checkVersion says what is wrong with a version, if anything.
func checkVersion(version uint32) string {
	switch {
	case version == 0:
		return "version 0 does not exist"
	case version&0xFFFF == 0:
		return fmt.Sprintf("version is 0x%08x: the file is big-endian, only little-endian files are read", version)
	case version < oldestVersion:
		return fmt.Sprintf("version %d is no longer supported by any tool; convert the model again", version)
	case version > DefaultVersion:
		return fmt.Sprintf("version %d is not known, %d is the newest", version, DefaultVersion)
	}
	return ""
}

// predecessors are the first bytes of files that llama.cpp read before GGUF,
// and of files that often stand in the place of a model.
var predecessors = []struct{ start, kind string }{
	{"lmgg", "a GGML file of 2023, which no tool reads any more"},
	{"fmgg", "a GGMF file of 2023, which no tool reads any more"},
	{"tjgg", "a GGJT file of 2023, which no tool reads any more"},
	{"algg", "a GGLA adapter of 2023, which no tool reads any more"},
	{"version https://git-lfs", "a Git LFS pointer in place of the model"},
	{"PK\x03\x04", "a zip archive, as PyTorch checkpoints (.bin, .pt) are"},
}

// notGGUF says what is there in place of the magic.
func notGGUF(start []byte) string {
	if len(start) == 0 {
		return "file is empty"
	}
	reason := fmt.Sprintf("file starts with %s, not with %q", excerpt(string(start[:min(len(start), len(magic))])), magic)
	for _, p := range predecessors {
		if bytes.HasPrefix(start, []byte(p.start)) {
			return reason + "; it is " + p.kind
		}
	}
	return reason
}

// readPair reads a key and its value.
func (p *headerParser) readPair() error {
	at := p.pos
	key, err := p.text("key")
	if err != nil {
		return err
	}
	if err := checkKey(key); err != nil {
		return &FormatError{Offset: at, Reason: err.Error()}
	}
	p.key = key
	if p.metadata.Has(key) {
		return &FormatError{Offset: at, Reason: "key is there twice"}
	}
	t, err := p.valueType()
	if err != nil {
		return err
	}
	var v Value
	if t == Array {
		v, err = p.array()
	} else {
		v, err = p.scalar(t)
	}
	if err != nil {
		return err
	}
	p.metadata.add(key, v)
	if key == KeyAlignment {
		if p.alignment, err = p.metadata.alignment(); err != nil {
			return &FormatError{Offset: at, Reason: err.Error()}
		}
	}
	p.key = ""
	return nil
}

// valueType reads the type of a value.
func (p *headerParser) valueType() (ValueType, error) {
	at := p.pos
	n, err := p.uint32()
	if err == nil && n >= uint32(len(valueTypes)) {
		err = &FormatError{Offset: at, Reason: fmt.Sprintf("value type %d is unknown, known are those below %d", n, len(valueTypes))}
	}
	return ValueType(n), err
}

// scalar reads a value that is no array.
func (p *headerParser) scalar(t ValueType) (Value, error) {
	if t == String {
		text, err := p.text("string")
		return Value{typ: String, data: text}, err
	}
	b, err := p.peek(int(t.size()))
	if err != nil {
		return Value{}, err
	}
	if t == Bool {
		if err := checkBools(b, p.pos); err != nil {
			return Value{}, err
		}
	}
	v := Value{typ: t, data: string(b)}
	p.skip(len(b))
	return v, p.checkLimit(0)
}

// array reads the rest of an array.
func (p *headerParser) array() (Value, error) {
	at := p.pos
	elem, err := p.valueType()
	if err != nil {
		return Value{}, err
	}
	if elem == Array {
		return Value{}, &FormatError{Offset: at, Reason: "arrays of arrays are not supported by any tool"}
	}
	count, err := p.uint64()
	if err != nil {
		return Value{}, err
	}
	size := elem.size()
	if elem == String {
		size = 8 // at least the length of each
	}
	at += 4
	switch {
	case count > maxLength:
		return Value{}, &FormatError{Offset: at, Reason: fmt.Sprintf("array of %d elements is above the limit of %d", count, maxLength)}
	case int64(count) > p.left()/size:
		return Value{}, &FormatError{Offset: at, Reason: fmt.Sprintf("array of %d %s runs past the end of the file, which has %d bytes",
			count, elem, p.r.Size())}
	}
	if err := p.checkLimit(int64(count) * size); err != nil {
		return Value{}, err
	}
	v := Value{typ: Array, elem: elem, count: int(count)}
	if elem == String {
		err := p.strings(&v)
		return v, err
	}
	var look func([]byte, int64) error
	if elem == Bool {
		look = checkBools
	}
	var g gatherer
	if err := p.gather(&g, int64(count)*size, look); err != nil {
		return Value{}, err
	}
	v.data = g.join()
	return v, nil
}

// strings reads the elements of an array of strings.
func (p *headerParser) strings(v *Value) error {
	var g gatherer
	var prefix [8]byte
	for i := range v.count {
		if i%markEvery == 0 {
			v.marks = append(v.marks, uint32(g.size))
		}
		n, err := p.length("string")
		if err != nil {
			return err
		}
		binary.LittleEndian.PutUint64(prefix[:], uint64(n))
		g.write(prefix[:])
		if err := p.gather(&g, n, nil); err != nil {
			return err
		}
	}
	v.data = g.join()
	return nil
}

// checkBools refuses booleans that are neither 0 nor 1, and so might read as
// true here and false there.
func checkBools(b []byte, at int64) error {
	for i, n := range b {
		if n > 1 {
			return &FormatError{Offset: at + int64(i), Reason: fmt.Sprintf("boolean is %d, neither 0 nor 1", n)}
		}
	}
	return nil
}
