package block

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/strictjson"
)

// FourBitState is what bitsandbytes stores about a 4-bit tensor as JSON in a tensor
// of its own, "quant_state.bitsandbytes__nf4" (functional.py, QuantState).
type FourBitState struct {
	Type      kernel.FourBit
	BlockSize int
	DType     tensor.DType // what it was, and becomes again: F16, BF16 or F32
	Shape     tensor.Shape
	Nested    bool // absmax is quantized too
	// NestedSize and Offset are those of the second quantization.
	NestedSize int
	Offset     float32
}

// FourBitNames are the spellings of the types.
var FourBitNames = map[kernel.FourBit]string{kernel.NF4: "nf4", kernel.FP4: "fp4"}

// torchNames are the spellings of the element types that can be quantized.
var torchNames = map[tensor.DType]string{tensor.F16: "float16", tensor.BF16: "bfloat16", tensor.F32: "float32"}

// TorchName returns torch's spelling of F16, BF16 or F32, empty for other types.
func TorchName(d tensor.DType) string { return torchNames[d] }

// stateKeys are the members in the order in which they are written; the last three
// belong to a nested state.
var stateKeys = []string{"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"}

// ParseFourBitState reads the JSON. Members that are missing or unknown, types and
// sizes that bitsandbytes does not have, and numbers that are not finite are errors.
func ParseFourBitState(data []byte) (FourBitState, error) {
	var s FourBitState
	o, err := strictjson.ParseObject(data)
	if err != nil {
		return s, err
	}
	for _, key := range o.Keys() {
		if !slices.Contains(stateKeys, key) {
			return s, fmt.Errorf("member %q is unknown", clip(key))
		}
		s.Nested = s.Nested || strings.HasPrefix(key, "nested_")
	}
	if err := s.parsePlain(o); err != nil {
		return s, err
	}
	if s.Nested {
		err = s.parseNested(o)
	}
	return s, err
}

func (s *FourBitState) parsePlain(o *strictjson.Object) error {
	kind, err := o.String("quant_type")
	if err != nil {
		return err
	}
	var known bool
	for t, name := range FourBitNames {
		if name == kind {
			s.Type, known = t, true
		}
	}
	if !known {
		return fmt.Errorf("quant_type: %q is neither nf4 nor fp4", clip(kind))
	}
	if s.BlockSize, err = blockSize(o, "blocksize"); err != nil {
		return err
	}
	name, err := o.String("dtype")
	if err != nil {
		return err
	}
	for d, torch := range torchNames {
		if torch == name {
			s.DType = d
		}
	}
	if s.DType == tensor.NoDType {
		return fmt.Errorf("dtype: %q is not float16, bfloat16 or float32", clip(name))
	}
	dims, err := o.Ints("shape")
	if err != nil {
		return err
	}
	s.Shape = dims
	if _, err := tensor.NewSpec("", s.DType, s.Shape); err != nil {
		return fmt.Errorf("shape: %w", err)
	}
	return nil
}

func (s *FourBitState) parseNested(o *strictjson.Object) (err error) {
	if s.NestedSize, err = blockSize(o, "nested_blocksize"); err != nil {
		return err
	}
	name, err := o.String("nested_dtype")
	if err != nil {
		return err
	}
	if name != "float32" {
		return fmt.Errorf("nested_dtype: %q is not float32", clip(name))
	}
	offset, err := o.Float("nested_offset")
	if err != nil {
		return err
	}
	s.Offset = float32(offset)
	if isInf(s.Offset) {
		return fmt.Errorf("nested_offset: %g is beyond float32", offset)
	}
	return nil
}

// blockSize reads one of [FourBitSizes].
func blockSize(o *strictjson.Object, key string) (int, error) {
	n, err := o.Int(key)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > math.MaxInt32 || !slices.Contains(FourBitSizes, int(n)) {
		return 0, fmt.Errorf("%s: %d is none of %v", key, n, FourBitSizes)
	}
	return int(n), nil
}

// clip shortens text of a file for a message.
func clip(text string) string {
	const limit = 40
	if len(text) <= limit {
		return text
	}
	return text[:limit] + "..."
}

// Encode writes the JSON as bitsandbytes does. The text of a nested state is filled
// with spaces to the length that the longest offset asks for: so its length is known
// before the offset is, and it means the same to every reader of JSON.
func (s FourBitState) Encode() []byte {
	o := strictjson.NewObject()
	o.Set("quant_type", strictjson.NewString(FourBitNames[s.Type]))
	o.Set("blocksize", strictjson.NewInt(int64(s.BlockSize)))
	o.Set("dtype", strictjson.NewString(torchNames[s.DType]))
	dims := make([]strictjson.Value, len(s.Shape))
	for i, d := range s.Shape {
		dims[i] = strictjson.NewInt(d)
	}
	o.Set("shape", strictjson.NewArray(dims...))
	if !s.Nested {
		return o.Encode("")
	}
	o.Set("nested_blocksize", strictjson.NewInt(int64(s.NestedSize)))
	o.Set("nested_dtype", strictjson.NewString("float32"))
	offset, err := strictjson.NewFloat(float64(s.Offset))
	if err != nil {
		panic("block: the offset is not finite") // it is a mean of finite magnitudes
	}
	o.Set("nested_offset", offset)
	text := o.Encode("")
	literal, _ := offset.Literal() // of a number just made
	for range longestOffset - len(literal) {
		text = append(text, ' ')
	}
	return text
}

// longestOffset is the length of the longest float64 in Python's spelling that is
// not negative and came from a float32: 17 digits, a point, and "0.000" in front or
// "e-38" behind.
const longestOffset = 22
