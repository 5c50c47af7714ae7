package mix

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
)

// FileType is a recipe for the types of a model's tensors, by the number that files
// keep in general.file_type (enum llama_ftype of include/llama.h).
type FileType uint32

// The file types that can be made. Numbers in between belonged to types that were
// removed.
const (
	F32      FileType = 0
	F16      FileType = 1
	Q4_0     FileType = 2
	Q4_1     FileType = 3
	Q8_0     FileType = 7
	Q5_0     FileType = 8
	Q5_1     FileType = 9
	Q2K      FileType = 10
	Q3KS     FileType = 11
	Q3KM     FileType = 12
	Q3KL     FileType = 13
	Q4KS     FileType = 14
	Q4KM     FileType = 15
	Q5KS     FileType = 16
	Q5KM     FileType = 17
	Q6K      FileType = 18
	IQ2XXS   FileType = 19
	IQ2XS    FileType = 20
	Q2KS     FileType = 21
	IQ3XS    FileType = 22
	IQ3XXS   FileType = 23
	IQ1S     FileType = 24
	IQ4NL    FileType = 25
	IQ3S     FileType = 26
	IQ3M     FileType = 27
	IQ2S     FileType = 28
	IQ2M     FileType = 29
	IQ4XS    FileType = 30
	IQ1M     FileType = 31
	BF16     FileType = 32
	TQ1_0    FileType = 36
	TQ2_0    FileType = 37
	MXFP4MoE FileType = 38
	Q1_0     FileType = 40
	Q2_0     FileType = 41
)

// Copy is no file type of the format: it leaves all tensors as they are.
const Copy FileType = 1<<32 - 1

// nvfp4 marks files whose converter kept NVFP4 weights. The quantizer has no recipe
// that makes them.
const nvfp4 FileType = 39

// guessed is added to a file type that no key told.
const guessed = 1024

const keyFileType = "general.file_type"

// aliases are other names that the reference takes.
var aliases = map[string]FileType{"Q3_K": Q3KM, "Q4_K": Q4KM, "Q5_K": Q5KM, "COPY": Copy}

// FileTypes returns all file types that can be made, in the order of their numbers.
func FileTypes() []FileType { return slices.Sorted(maps.Keys(recipes)) }

// ParseFileType returns the file type of a name, in any case, or of a number in
// decimal. Q3_K, Q4_K and Q5_K stand for their M variants, COPY for [Copy].
func ParseFileType(text string) (FileType, error) {
	t, ok := lookUp(text)
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		t = FileType(n)
		_, ok = recipes[t]
	}
	switch {
	case ok:
		return t, nil
	case t == nvfp4 || strings.EqualFold(text, nvfp4.String()):
		return 0, &OptionError{Option: "file type",
			Reason: "NVFP4 has no recipe: converters keep such weights, quantizers make them for single tensors only"}
	}
	return 0, &OptionError{Option: "file type", Reason: quote(text) + " is unknown"}
}

// lookUp returns the file type of a name.
func lookUp(text string) (FileType, bool) {
	name := strings.ToUpper(text)
	if t, ok := aliases[name]; ok {
		return t, true
	}
	for t := range recipes {
		if t.String() == name {
			return t, true
		}
	}
	return 0, false
}

// String returns the name that the reference's tool takes, as "Q4_K_M".
func (t FileType) String() string {
	if t == Copy {
		return "COPY"
	}
	if name, ok := gguf.FileTypeName(int64(t)); ok {
		return name
	}
	return fmt.Sprintf("file type %d", uint32(t))
}

// Type returns the tensor type that the file type is named after, or false for
// [Copy]. It is not always the name's: most of IQ3_M is of type IQ3_S.
func (t FileType) Type() (gguf.Type, bool) {
	r, ok := recipes[t]
	return r.base, ok
}

// guessFileType returns the file type of a model that does not tell its own: by the type
// most tensors have, among equals the one that reaches its number first in the
// order of [Sort].
//
// Source: llama_model_loader of src/llama-model-loader.cpp.
func guessFileType(tensors []gguf.Spec) uint32 {
	sorted := slices.Clone(tensors)
	Sort(sorted)
	counts := make(map[gguf.Type]int)
	most, top := gguf.F32, 0
	for _, t := range sorted {
		counts[t.Type]++
		if counts[t.Type] > top {
			most, top = t.Type, counts[t.Type]
		}
	}
	return guessed | uint32(fileTypeOf(most))
}

// fileTypeOf returns the file type that is called like a type of tensor, F32 if there
// is none.
func fileTypeOf(t gguf.Type) FileType {
	if t == gguf.NVFP4 {
		return nvfp4
	}
	f, _ := lookUp(t.String())
	return f
}

// Sort puts tensors into the order in which the reference writes them: first those
// outside of blocks, then by the number of the block, each by name.
func Sort(tensors []gguf.Spec) {
	slices.SortFunc(tensors, func(a, b gguf.Spec) int {
		la, _ := blockOf(a.Name)
		lb, _ := blockOf(b.Name)
		return cmp.Or(cmp.Compare(la, lb), cmp.Compare(a.Name, b.Name))
	})
}

// blockOf returns the number N in a name that begins with "blk.N", or -1 and false.
// It reads the number as the C library's scanf does: white space and a sign may be
// before it, anything behind it, and one that is too large loses its upper bits.
func blockOf(name string) (int32, bool) {
	rest, ok := strings.CutPrefix(name, "blk.")
	if !ok {
		return -1, false
	}
	rest = strings.TrimLeft(rest, " \t\n\v\f\r")
	end := 0
	if end < len(rest) && (rest[end] == '-' || rest[end] == '+') {
		end++
	}
	for end < len(rest) && '0' <= rest[end] && rest[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(rest[:end], 10, 64) // saturates, as strtol
	if err != nil && n == 0 {
		return -1, false // no digits
	}
	return int32(n), true
}
