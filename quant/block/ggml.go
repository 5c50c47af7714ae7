package block

import (
	"encoding/binary"
	"math"
	"math/bits"
	"strings"
)

// GGML is an element type of ggml, the tensor library of llama.cpp, by its number
// in files: some elements in some bytes, a block. Rows are whole blocks.
//
// Decoding gives the float32 numbers that ggml's own functions give, bit for bit;
// only a block whose scale is not finite may differ, in the sign and payload of
// NaNs, as in package kernel. Encoding gives the bytes that llama.cpp's quantizer
// writes on x86-64, where it is compiled without fused multiply-add: every product
// and every sum is a float32 of its own, in a fixed order. (Builds of it for other
// CPUs may fuse and then differ in Q2_K, Q4_K and Q5_K.)
//
// The formats are those of llama.cpp v0.5.0, ggml/src/ggml-quants.c, ggml-common.h
// and ggml-impl.h.
type GGML uint32

// The types, with the names and numbers of ggml.h. Numbers in between belonged to
// types that were removed.
const (
	F32     GGML = 0
	F16     GGML = 1
	Q4_0    GGML = 2
	Q4_1    GGML = 3
	Q5_0    GGML = 6
	Q5_1    GGML = 7
	Q8_0    GGML = 8
	Q8_1    GGML = 9
	Q2_K    GGML = 10
	Q3_K    GGML = 11
	Q4_K    GGML = 12
	Q5_K    GGML = 13
	Q6_K    GGML = 14
	Q8_K    GGML = 15
	IQ2_XXS GGML = 16
	IQ2_XS  GGML = 17
	IQ3_XXS GGML = 18
	IQ1_S   GGML = 19
	IQ4_NL  GGML = 20
	IQ3_S   GGML = 21
	IQ2_S   GGML = 22
	IQ4_XS  GGML = 23
	I8      GGML = 24
	I16     GGML = 25
	I32     GGML = 26
	I64     GGML = 27
	F64     GGML = 28
	IQ1_M   GGML = 29
	BF16    GGML = 30
	TQ1_0   GGML = 34
	TQ2_0   GGML = 35
	MXFP4   GGML = 39
	NVFP4   GGML = 40
	Q1_0    GGML = 41
	Q2_0    GGML = 42
)

// ggmlType describes a type. Functions work on whole blocks; encode is given one
// row, as some types weigh by a mean over it, and weights that are nil or as many
// as the row has elements.
type ggmlType struct {
	name            string
	elements, bytes int   // of a block
	halves          []int // where the binary16 scales of a block are
	weighted        bool  // encode looks at the weights
	needsWeights    bool  // and can't do without
	hiddenHalf      bool  // a binary16 scale is spread over the block

	codec  Codec // of a type of one element
	decode func(dst []float32, src []byte)
	encode func(dst []byte, row, weights []float32)
	finite func(block []byte) bool // for types with scales that are not in halves

	refusal string // why decode or encode is nil
}

// beyondHalves is more than any type with binary16 scales can hold, which IQ4_XS and Q6_K
// do up to 2^28, and beyondWeights more than a mean of squared activations can mean.
// Below both, no sum of a search overflows without the scale becoming infinite too, so
// that it shows. (ggml knows no limits. Beyond these it may lose a group without a word.)
const (
	beyondHalves  = 1 << 32
	beyondWeights = 1 << 64
)

// superBlock is the number of elements in a block of the K, IQ and TQ types.
const superBlock = 256

const (
	notWeights  = "it holds integers, not weights"
	runtimeOnly = "it exists while a model runs and is not stored in files"
	noWeights   = "so few bits must know which numbers matter; llama.cpp refuses that, too"
)

// ggmlTypes holds the types by number; those removed are empty.
var ggmlTypes = [...]ggmlType{
	F32:  {name: "F32", elements: 1, bytes: 4, decode: f32{}.Decode32, encode: scalar(f32{}), codec: f32{}},
	F16:  {name: "F16", elements: 1, bytes: 2, decode: f16{}.Decode32, encode: scalar(f16{}), codec: f16{}},
	BF16: {name: "BF16", elements: 1, bytes: 2, decode: bf16{}.Decode32, encode: scalar(bf16{}), codec: bf16{}},
	F64:  {name: "F64", elements: 1, bytes: 8, decode: f64{}.Decode32, encode: scalar(f64{}), codec: f64{}},

	I8:  {name: "I8", elements: 1, bytes: 1, refusal: notWeights},
	I16: {name: "I16", elements: 1, bytes: 2, refusal: notWeights},
	I32: {name: "I32", elements: 1, bytes: 4, refusal: notWeights},
	I64: {name: "I64", elements: 1, bytes: 8, refusal: notWeights},

	Q1_0: {name: "Q1_0", elements: 128, bytes: 18, halves: []int{0}, decode: decodeQ1_0, encode: encodeQ1_0},
	Q2_0: {name: "Q2_0", elements: 64, bytes: 18, halves: []int{0}, decode: decodeQ2_0, encode: encodeQ2_0},
	Q4_0: {name: "Q4_0", elements: 32, bytes: 18, halves: []int{0}, decode: decodeQ4_0, encode: encodeQ4_0, weighted: true},
	Q4_1: {name: "Q4_1", elements: 32, bytes: 20, halves: []int{0, 2}, decode: decodeQ4_1, encode: encodeQ4_1, weighted: true},
	Q5_0: {name: "Q5_0", elements: 32, bytes: 22, halves: []int{0}, decode: decodeQ5_0, encode: encodeQ5_0, weighted: true},
	Q5_1: {name: "Q5_1", elements: 32, bytes: 24, halves: []int{0, 2}, decode: decodeQ5_1, encode: encodeQ5_1, weighted: true},
	Q8_0: {name: "Q8_0", elements: 32, bytes: 34, halves: []int{0}, decode: decodeQ8_0, encode: encodeQ8_0},
	Q8_1: {name: "Q8_1", elements: 32, bytes: 36, halves: []int{0, 2}, decode: decodeQ8_1, refusal: runtimeOnly},

	Q2_K: {name: "Q2_K", elements: 256, bytes: 84, halves: []int{80, 82}, decode: decodeQ2K, encode: encodeQ2K, weighted: true},
	Q3_K: {name: "Q3_K", elements: 256, bytes: 110, halves: []int{108}, decode: decodeQ3K, encode: encodeQ3K, weighted: true},
	Q4_K: {name: "Q4_K", elements: 256, bytes: 144, halves: []int{0, 2}, decode: decodeQ4K, encode: encodeQ4K, weighted: true},
	Q5_K: {name: "Q5_K", elements: 256, bytes: 176, halves: []int{0, 2}, decode: decodeQ5K, encode: encodeQ5K, weighted: true},
	Q6_K: {name: "Q6_K", elements: 256, bytes: 210, halves: []int{208}, decode: decodeQ6K, encode: encodeQ6K, weighted: true},
	Q8_K: {name: "Q8_K", elements: 256, bytes: 292, finite: finiteQ8K, decode: decodeQ8K, refusal: runtimeOnly},

	IQ1_S:   {name: "IQ1_S", elements: 256, bytes: 50, halves: []int{0}, decode: decodeIQ1S, encode: encodeIQ1S, weighted: true, needsWeights: true},
	IQ1_M:   {name: "IQ1_M", elements: 256, bytes: 56, finite: finiteIQ1M, hiddenHalf: true, decode: decodeIQ1M, encode: encodeIQ1M, weighted: true},
	IQ2_XXS: {name: "IQ2_XXS", elements: 256, bytes: 66, halves: []int{0}, decode: decodeIQ2XXS, encode: encodeIQ2XXS, weighted: true, needsWeights: true},
	IQ2_XS:  {name: "IQ2_XS", elements: 256, bytes: 74, halves: []int{0}, decode: decodeIQ2XS, encode: encodeIQ2XS, weighted: true, needsWeights: true},
	IQ2_S:   {name: "IQ2_S", elements: 256, bytes: 82, halves: []int{0}, decode: decodeIQ2S, encode: encodeIQ2S, weighted: true},
	IQ3_XXS: {name: "IQ3_XXS", elements: 256, bytes: 98, halves: []int{0}, decode: decodeIQ3XXS, encode: encodeIQ3XXS, weighted: true},
	IQ3_S:   {name: "IQ3_S", elements: 256, bytes: 110, halves: []int{0}, decode: decodeIQ3S, encode: encodeIQ3S, weighted: true},
	IQ4_NL:  {name: "IQ4_NL", elements: 32, bytes: 18, halves: []int{0}, decode: decodeIQ4NL, encode: encodeIQ4NL, weighted: true},
	IQ4_XS:  {name: "IQ4_XS", elements: 256, bytes: 136, halves: []int{0}, decode: decodeIQ4XS, encode: encodeIQ4XS, weighted: true},

	TQ1_0: {name: "TQ1_0", elements: 256, bytes: 54, halves: []int{52}, decode: decodeTQ1, encode: encodeTQ1},
	TQ2_0: {name: "TQ2_0", elements: 256, bytes: 66, halves: []int{64}, decode: decodeTQ2, encode: encodeTQ2},
	MXFP4: {name: "MXFP4", elements: 32, bytes: 17, finite: finiteMXFP4, decode: decodeMXFP4, encode: encodeMXFP4},
	NVFP4: {name: "NVFP4", elements: 64, bytes: 36, decode: decodeNVFP4, encode: encodeNVFP4},
}

// ParseGGML returns the type with the given name, in capitals or not: "Q4_K",
// "q4_K".
func ParseGGML(name string) (GGML, bool) {
	for i := range ggmlTypes {
		if t := GGML(i); t.Known() && strings.EqualFold(name, ggmlTypes[i].name) {
			return t, true
		}
	}
	return 0, false
}

// Known reports whether the number is that of a type which files may hold. The
// other methods must not be called where it is not, but for String.
func (t GGML) Known() bool { return uint64(t) < uint64(len(ggmlTypes)) && ggmlTypes[t].elements > 0 }

// String returns the name of the type.
func (t GGML) String() string {
	if !t.Known() {
		return "unknown"
	}
	return ggmlTypes[t].name
}

// BlockElements and BlockBytes return the size of a block.
func (t GGML) BlockElements() int { return ggmlTypes[t].elements }

// BlockBytes is described at BlockElements.
func (t GGML) BlockBytes() int { return ggmlTypes[t].bytes }

// RowBytes returns the bytes of a row of cols elements, or false if they are not
// whole blocks, negative, or too many for int64.
func (t GGML) RowBytes(cols int64) (int64, bool) {
	elements, size := int64(ggmlTypes[t].elements), int64(ggmlTypes[t].bytes)
	if cols < 0 || cols%elements != 0 {
		return 0, false
	}
	high, low := bits.Mul64(uint64(cols/elements), uint64(size))
	return int64(low), high == 0 && low <= math.MaxInt64
}

// Weighted reports whether Quantize looks at importance weights.
func (t GGML) Weighted() bool { return ggmlTypes[t].weighted }

// NeedsWeights reports whether Quantize refuses to do without importance weights.
func (t GGML) NeedsWeights() bool { return ggmlTypes[t].needsWeights }

// CanDecode returns nil, or a [*GGMLTypeError] that says why Decode refuses the type.
func (t GGML) CanDecode() error {
	if ggmlTypes[t].decode == nil {
		return &GGMLTypeError{t, "decoded", ggmlTypes[t].refusal}
	}
	return nil
}

// CanQuantize returns nil, or a [*GGMLTypeError] that says why Quantize refuses the
// type.
func (t GGML) CanQuantize() error {
	if ggmlTypes[t].encode == nil {
		return &GGMLTypeError{t, "written", ggmlTypes[t].refusal}
	}
	return nil
}

// Decode sets every element of dst from the blocks of src. The error is that of
// CanDecode. Any bytes decode to something; [GGML.NonFinite] finds those that mean
// nothing.
func (t GGML) Decode(dst []float32, src []byte) error {
	if err := t.CanDecode(); err != nil {
		return err
	}
	info := &ggmlTypes[t]
	checkBlocks(info, len(src), len(dst))
	info.decode(dst, src)
	if info.codec != nil {
		return nil // it has rules of its own for NaN
	}
	for b := 0; len(src) > 0; b++ {
		if !info.finiteBlock(src[:info.bytes]) {
			canonicalNaN(dst[b*info.elements:][:info.elements])
		}
		src = src[info.bytes:]
	}
	return nil
}

// NonFinite returns the index of the first block of src with a scale that is NaN or
// infinite, which no quantizer means to write. For scalar types the element itself
// is the scale; integers have none.
func (t GGML) NonFinite(src []byte) (block int64, found bool) {
	info := &ggmlTypes[t]
	checkBlocks(info, len(src), len(src)/info.bytes*info.elements)
	if info.codec != nil {
		return AnyNonFinite(info.codec, src)
	}
	for at := 0; at < len(src); at += info.bytes {
		if !info.finiteBlock(src[at:][:info.bytes]) {
			return int64(at / info.bytes), true
		}
	}
	return 0, false
}

// Quantize encodes whole rows of cols elements each. weights says how much the
// elements of a column matter, one number per column, from 0 to under 2^64; nil weighs them
// as the type does by default, if it does (see [GGML.NeedsWeights]). What a row becomes does
// not depend on the other rows.
//
// Errors are that of CanQuantize, a [*GGMLTypeError] for weights that are missing, and a [*GGMLValueError] for a source that is not finite or
// that the type can't hold, and for a weight out of its range. dst is then unspecified.
// Lengths that do not belong together panic.
//
// NVFP4 saturates at 2688, as in ggml.
func (t GGML) Quantize(dst []byte, src []float32, cols int, weights []float32) error {
	if err := t.CanQuantize(); err != nil {
		return err
	}
	info := &ggmlTypes[t]
	if info.needsWeights && weights == nil {
		return &GGMLTypeError{t, "written without weights", noWeights}
	}
	checkBlocks(info, len(dst), len(src))
	if cols <= 0 || cols%info.elements != 0 || len(src)%cols != 0 || weights != nil && len(weights) != cols {
		panic("block: not whole rows, or not a weight per column")
	}
	if !info.weighted {
		weights = nil
	}
	if at := firstFrom(src, info.limit()); at >= 0 {
		reason := "is not finite"
		if finite32(src[at]) {
			reason = "is too large"
		}
		return &GGMLValueError{t, at / cols, at % cols, src[at], reason}
	}
	if at := badWeight(weights); at >= 0 {
		return &GGMLValueError{t, 0, at, weights[at], "as a weight is negative, too large or not finite"}
	}
	size := cols / info.elements * info.bytes
	for row := 0; len(src) > 0; row++ {
		info.encode(dst[:size], src[:cols], weights)
		if b, found := t.NonFinite(dst[:size]); found {
			at := int(b) * info.elements
			at += largest(src[at:][:info.elements])
			return &GGMLValueError{t, row, at, src[at], "is the largest of a block whose scale or sums come out infinite"}
		}
		dst, src = dst[size:], src[cols:]
	}
	return nil
}

// limit returns a magnitude that no number may have.
func (info *ggmlType) limit() float32 {
	if len(info.halves) > 0 || info.hiddenHalf {
		return beyondHalves
	}
	return float32(math.Inf(1))
}

// finiteBlock reports whether no scale of a block is NaN or infinite.
func (info *ggmlType) finiteBlock(block []byte) bool {
	for _, at := range info.halves {
		if !finiteHalf(binary.LittleEndian.Uint16(block[at:])) {
			return false
		}
	}
	return info.finite == nil || info.finite(block)
}

// checkBlocks panics unless size bytes are whole blocks of n elements in all.
func checkBlocks(info *ggmlType, size, n int) {
	if size%info.bytes != 0 || n%info.elements != 0 || size/info.bytes != n/info.elements {
		panic("block: bytes and numbers differ in count")
	}
}

// scalar makes an entry of the table from a codec.
func scalar(c Codec) func(dst []byte, row, weights []float32) {
	return func(dst []byte, row, _ []float32) { c.Encode32(dst, row) }
}

// canonicalNaN makes every NaN the positive quiet one without payload: which one
// arithmetic gives depends on the CPU.
func canonicalNaN(numbers []float32) {
	for i, x := range numbers {
		if x != x {
			numbers[i] = math.Float32frombits(inf32 | quiet32)
		}
	}
}

// firstFrom returns the index of the first NaN or number whose magnitude is at least
// limit, or -1.
func firstFrom(numbers []float32, limit float32) int {
	from := math.Float32bits(limit)
	for i, x := range numbers {
		if math.Float32bits(x)&^sign32 >= from {
			return i
		}
	}
	return -1
}

func badWeight(weights []float32) int {
	for i, w := range weights {
		if !(w >= 0 && w < beyondWeights) {
			return i
		}
	}
	return -1
}

func finite32(x float32) bool { return math.Float32bits(x)&inf32 != inf32 }

// largest returns the index of the first element of the largest magnitude.
func largest(numbers []float32) int {
	at := 0
	for i, x := range numbers {
		if magnitude(x) > magnitude(numbers[at]) {
			at = i
		}
	}
	return at
}
