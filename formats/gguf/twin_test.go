package gguf_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
)

// twin reads the header of a file that is in memory as the reference's reader
// does (ggml/src/gguf.cpp, release v0.5.0), in the plainest way and by its
// rules only. It shares nothing with the package but the names of the types,
// which are compared with the reference's elsewhere.
type twin struct {
	data    []byte
	pos     int
	keys    []string // as describe gives them
	tensors []string // name, type, dimensions as in the file, offset in the data
	start   int64    // of the data
}

// refusal is what the twin panics with.
type refusal string

// readTwin returns nil and a reason if the reference refuses the file.
func readTwin(data []byte) (tw *twin, reason string) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case refusal:
			tw, reason = nil, string(r)
		default:
			panic(r)
		}
	}()
	tw = &twin{data: data}
	tw.read()
	return tw, ""
}

func (tw *twin) check(ok bool, reason string) {
	if !ok {
		panic(refusal(reason))
	}
}

func (tw *twin) take(n uint64) []byte {
	tw.check(n <= uint64(len(tw.data)-tw.pos), "the file ends")
	b := tw.data[tw.pos:][:n]
	tw.pos += int(n)
	return b
}

func (tw *twin) u32() uint32 { return binary.LittleEndian.Uint32(tw.take(4)) }

func (tw *twin) u64() uint64 { return binary.LittleEndian.Uint64(tw.take(8)) }

func (tw *twin) text() string {
	n := tw.u64()
	tw.check(n <= 1<<30, "string too long")
	return string(tw.take(n))
}

func (tw *twin) read() {
	tw.check(string(tw.take(4)) == "GGUF", "magic")
	version := tw.u32()
	tw.check(version == 2 || version == 3, "version")
	tensors, keys := int64(tw.u64()), int64(tw.u64())
	tw.check(tensors >= 0 && keys >= 0, "counts")
	alignment := uint64(32)
	seen := map[string]bool{}
	for range keys {
		key := tw.text()
		tw.check(key != "" && !seen[key], "key")
		seen[key] = true
		typ := tw.u32()
		at := tw.pos
		tw.keys = append(tw.keys, key+" "+tw.value(typ))
		if name, _, _ := strings.Cut(key, "\x00"); name == "general.alignment" {
			tw.check(typ == 4, "type of the alignment")
			alignment = uint64(binary.LittleEndian.Uint32(tw.data[at:]))
			tw.check(alignment > 0 && alignment&(alignment-1) == 0, "alignment")
		}
	}
	tw.entries(tensors, alignment)
}

// value reads a value and spells it out.
func (tw *twin) value(typ uint32) string {
	if typ != 9 {
		return gguf.ValueType(typ).String() + " " + tw.scalar(typ)
	}
	typ = tw.u32()
	n := tw.u64()
	size := map[uint32]uint64{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 8: 8, 10: 8, 11: 8, 12: 8}[typ]
	tw.check(size > 0 && n <= 1<<30 && n*size <= uint64(len(tw.data)-tw.pos), "array")
	var b strings.Builder
	fmt.Fprintf(&b, "array of %d %s", n, gguf.ValueType(typ))
	for range n {
		b.WriteString(" " + tw.scalar(typ))
	}
	return b.String()
}

func (tw *twin) scalar(typ uint32) string {
	switch typ {
	case 0:
		return fmt.Sprint(tw.take(1)[0])
	case 1:
		return fmt.Sprint(int8(tw.take(1)[0]))
	case 2:
		return fmt.Sprint(binary.LittleEndian.Uint16(tw.take(2)))
	case 3:
		return fmt.Sprint(int16(binary.LittleEndian.Uint16(tw.take(2))))
	case 4:
		return fmt.Sprint(tw.u32())
	case 5:
		return fmt.Sprint(int32(tw.u32()))
	case 6:
		return fmt.Sprint(float64(math.Float32frombits(tw.u32())))
	case 7:
		return fmt.Sprint(tw.take(1)[0] != 0)
	case 8:
		return fmt.Sprintf("%q", tw.text())
	case 10:
		return fmt.Sprint(tw.u64())
	case 11:
		return fmt.Sprint(int64(tw.u64()))
	case 12:
		return fmt.Sprint(math.Float64frombits(tw.u64()))
	}
	panic(refusal("value type"))
}

// entries reads the list of tensors. Sizes are big integers: the reference
// wraps around for shapes that this package refuses anyway.
func (tw *twin) entries(count int64, alignment uint64) {
	seen := map[string]bool{}
	var offsets []uint64
	var sizes []*big.Int
	for range count {
		name := tw.text()
		tw.check(len(name) < 64, "name too long")
		name, _, _ = strings.Cut(name, "\x00")
		tw.check(!seen[name], "tensor twice")
		seen[name] = true
		n := tw.u32()
		tw.check(n <= 4, "dimensions")
		var dims []int64
		product := big.NewInt(1)
		for range n {
			d := int64(tw.u64())
			tw.check(d >= 0, "negative dimension")
			dims = append(dims, d)
			product.Mul(product, big.NewInt(d))
		}
		typ := gguf.Type(tw.u32())
		block := typ.BlockSize()
		row := int64(1)
		if n > 0 {
			row = dims[0]
		}
		tw.check(block > 0 && row%block == 0, "type")
		size := product.Div(product, big.NewInt(block))
		size.Mul(size, big.NewInt(typ.TypeSize()))
		offset := tw.u64()
		offsets, sizes = append(offsets, offset), append(sizes, size)
		tw.tensors = append(tw.tensors, fmt.Sprint(name, typ, dims, offset))
	}
	tw.start = int64(tw.pos)
	if count > 0 {
		tw.start += int64(-uint64(tw.pos) % alignment)
		tw.check(tw.start <= int64(len(tw.data)), "padding before the data")
	}
	next := new(big.Int)
	for i, offset := range offsets {
		tw.check(next.Cmp(new(big.Int).SetUint64(offset)) == 0, "offset")
		next.Add(next, sizes[i])
		a := new(big.Int).SetUint64(alignment)
		next.Add(next, new(big.Int).Mod(new(big.Int).Neg(next), a))
	}
}

// compareWithTwin asserts that the package refuses whatever the reference
// refuses, for no other reasons than those listed, and sees the same in a file.
func compareWithTwin(t testing.TB, data []byte, f *gguf.File, err error) {
	t.Helper()
	tw, reason := readTwin(data)
	switch {
	case err != nil && tw != nil && !isStricter(err):
		t.Errorf("refused: %v; the reference accepts it", err)
	case err == nil && tw == nil:
		t.Errorf("accepted; the reference refuses it: %s", reason)
	case err == nil:
		if got := describe(f.Metadata()); !slices.Equal(got, tw.keys) {
			t.Errorf("keys %q, the reference sees %q", got, tw.keys)
		}
		var got []string
		for _, s := range f.Tensors() {
			dims := slices.Clone([]int64(s.Shape))
			slices.Reverse(dims)
			got = append(got, fmt.Sprint(s.Name, s.Type, dims, s.Offset-tw.start))
		}
		if !slices.Equal(got, tw.tensors) {
			t.Errorf("tensors %q, the reference sees %q", got, tw.tensors)
		}
	}
}

// The twin itself must agree with the reference wherever that was asked, except
// where it does not wrap around.
func TestTwinIsTheReference(t *testing.T) {
	for _, c := range goldenCases(t) {
		data := c.bytes(t)
		tw, reason := readTwin(data)
		if (tw != nil) != (c.Header == "accept") {
			f, err := open(data)
			if c.Header == "reject" && err != nil && strings.Contains(err.Error(), "overflows") {
				continue // the twin's sizes do not end at 63 bits
			}
			t.Errorf("%s: the twin says %q, the reference %s %s; %v", c.Name, reason, c.Header, c.Message, f)
		}
	}
}

// All that is at hand, with every byte of the smaller files changed in turn.
func TestVerdictsOfTwin(t *testing.T) {
	compare := func(data []byte) {
		f, err := open(data)
		compareWithTwin(t, data, f, err)
	}
	for _, path := range goldenFiles(t) {
		compare(readFile(t, path))
	}
	for _, data := range seeds(t) {
		for i := range data {
			for _, b := range []byte{0, 1, 2, 7, 8, 9, 0x7F, 0x80, 0xFF} {
				changed := slices.Clone(data)
				changed[i] = b
				compare(changed)
			}
		}
	}
}
