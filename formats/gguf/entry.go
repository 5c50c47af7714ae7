package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/formats/tensor"
)

// readTensors reads the list of tensors.
func (p *headerParser) readTensors(count uint64) error {
	p.byName = make(map[string]int32)
	for range count {
		if err := p.readTensor(); err != nil {
			return err
		}
	}
	return nil
}

// readTensor reads one entry of the list.
func (p *headerParser) readTensor() error {
	at := p.pos
	name, err := p.tensorName()
	if err != nil {
		return err
	}
	p.name = name
	if _, twice := p.byName[name]; twice {
		return &FormatError{Offset: at, Reason: "tensor is there twice"}
	}
	shape, err := p.shape()
	if err != nil {
		return err
	}
	typeAt := p.pos
	t, err := p.uint32()
	if err != nil {
		return err
	}
	if _, err := sizeOf(Type(t), shape); err != nil {
		return &FormatError{Offset: typeAt, Reason: err.Error()}
	}
	offsetAt := p.pos
	offset, err := p.uint64()
	if err != nil {
		return err
	}
	if offset > math.MaxInt64 {
		return &FormatError{Offset: offsetAt, Reason: fmt.Sprintf("data offset %d is beyond 63 bits", offset)}
	}
	p.byName[name] = int32(len(p.tensors))
	p.tensors = append(p.tensors, Tensor{Spec: Spec{Name: name, Type: Type(t), Shape: shape}, Offset: int64(offset)})
	p.name = ""
	return p.checkLimit(0)
}

// tensorName reads a name; one that is too long is not read.
func (p *headerParser) tensorName() (string, error) {
	at := p.pos
	n, err := p.length("tensor name")
	if err != nil {
		return "", err
	}
	if n > MaxNameSize {
		return "", &FormatError{Offset: at, Reason: fmt.Sprintf("tensor name has %d bytes, at most %d are allowed", n, MaxNameSize)}
	}
	b, err := p.peek(int(n))
	if err != nil {
		return "", err
	}
	name := string(b)
	p.skip(len(b))
	if err := checkName(name); err != nil {
		return "", &FormatError{Offset: at, Reason: err.Error()}
	}
	return name, nil
}

// shape reads the dimensions and turns them around.
func (p *headerParser) shape() (tensor.Shape, error) {
	at := p.pos
	n, err := p.uint32()
	if err != nil {
		return nil, err
	}
	if n > MaxDims {
		return nil, &FormatError{Offset: at, Reason: fmt.Sprintf("%d dimensions, at most %d are possible", n, MaxDims)}
	}
	b, err := p.peek(int(n) * 8)
	if err != nil {
		return nil, err
	}
	shape := p.shapes.take(int(n))
	for i := range shape {
		d := int64(binary.LittleEndian.Uint64(b[8*i:]))
		if d < 0 {
			return nil, &FormatError{Offset: p.pos + int64(8*i), Reason: fmt.Sprintf("dimension %d is negative", d)}
		}
		shape[i] = d
	}
	p.skip(len(b))
	slices.Reverse(shape)
	return shape, nil
}

// place proves that the tensors follow each other without gap or overlap but
// for the padding, and that the file has the data of each.
func (p *headerParser) place() error {
	if len(p.tensors) == 0 {
		return nil
	}
	start, ok := pad(p.pos, p.alignment)
	if !ok || start > p.r.Size() {
		return &FormatError{Offset: p.pos, Reason: fmt.Sprintf("file ends inside the padding before the data, which is aligned to %d", p.alignment)}
	}
	next := int64(0) // where the next tensor must begin in the data section
	for i := range p.tensors {
		t := &p.tensors[i]
		p.name = t.Name
		if t.Offset != next {
			return &FormatError{Offset: start, Reason: fmt.Sprintf("data offset is %d, the tensors before it end at %d", t.Offset, next)}
		}
		if room := p.r.Size() - start; t.Size() > room-next {
			return &FormatError{Offset: start, Reason: fmt.Sprintf("%d bytes at offset %d run past the end of the data, which has %d",
				t.Size(), next, room)}
		}
		t.Offset += start
		// A sum that overflows is past the end of any file: then this is the last.
		if next, ok = pad(next+t.Size(), p.alignment); !ok {
			next = math.MaxInt64
		}
	}
	p.name = ""
	return nil
}

// shapeArena stores shapes next to each other: a million small allocations
// would cost more than the shapes.
type shapeArena struct{ free []int64 }

// arenaBlock is the number of dimensions allocated at once.
const arenaBlock = 1024

// take returns a shape of n dimensions.
func (a *shapeArena) take(n int) tensor.Shape {
	if n > len(a.free) {
		a.free = make([]int64, arenaBlock)
	}
	shape := a.free[:n:n]
	a.free = a.free[n:]
	return shape
}
