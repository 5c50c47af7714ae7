package block_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/quant/block"
)

var ggmlVectors = flag.String("ggml", "", "another folder of vectors by testdata/gen/ggml_vectors.py to compare with")

// vectorSet is a set of what ggml's own functions made of rows and of blocks.
type vectorSet struct {
	Inputs map[string]struct{ Rows, Cols, At int }

	Weights map[string]struct{ Cols, At int }

	Quantized []quantizedCase
	Refused   []quantizedCase
	Decoded   []struct {
		Type               string
		At, Bytes, Numbers int
	}

	Digests []struct {
		Type, Kind, Weights, SHA256 string
		Rows                        int
	}

	blob []byte
}

type quantizedCase struct {
	Type, Input, Weights string
	At, Bytes            int
	Decoded              string // SHA-256 of the float32
	DecodeOnly           bool   `json:"decode_only"`
}

func vectorSets(t *testing.T) map[string]*vectorSet {
	t.Helper()
	files, err := filepath.Glob("../../testdata/golden/ggml/*.json")
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	if *ggmlVectors != "" {
		files = []string{filepath.Join(*ggmlVectors, "vectors.json")}
	}
	sets := make(map[string]*vectorSet)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		set := new(vectorSet)
		if err := json.Unmarshal(text, set); err != nil {
			t.Fatal(file, err)
		}
		if set.blob, err = os.ReadFile(file[:len(file)-len(".json")] + ".bin"); err != nil {
			t.Fatal(err)
		}
		sets[filepath.Base(file)] = set
	}
	return sets
}

func (s *vectorSet) floats(at, n int) []float32 {
	numbers := make([]float32, n)
	for i := range numbers {
		numbers[i] = math.Float32frombits(binary.LittleEndian.Uint32(s.blob[at+4*i:]))
	}
	return numbers
}

// weights returns the weights with a name, nil for none.
func (s *vectorSet) weights(name string) []float32 {
	w, ok := s.Weights[name]
	if !ok {
		return nil
	}
	return s.floats(w.At, w.Cols)
}

func ggmlType(t *testing.T, name string) block.GGML {
	t.Helper()
	kind, ok := block.ParseGGML(name)
	if !ok {
		t.Fatalf("no type %q", name)
	}
	return kind
}

// TestGGMLGoldenQuantized guards that rows become the reference's bytes, and that
// those decode to the reference's numbers.
func TestGGMLGoldenQuantized(t *testing.T) {
	for file, set := range vectorSets(t) {
		written := make(map[string]bool)
		for _, c := range set.Quantized {
			kind := ggmlType(t, c.Type)
			want := set.blob[c.At:][:c.Bytes]
			in := set.Inputs[c.Input]
			name := fmt.Sprintf("%s: %s of %s with weights %q", file, kind, c.Input, c.Weights)
			numbers := make([]float32, in.Rows*in.Cols)
			if err := kind.Decode(numbers, want); err != nil {
				t.Fatal(err)
			}
			if digest := sha256.Sum256(littleEndian(numbers)); hex.EncodeToString(digest[:]) != c.Decoded {
				t.Errorf("%s: decodes to other numbers", name)
			}
			if c.DecodeOnly || kind.CanQuantize() != nil {
				continue
			}
			written[c.Type] = true
			got := make([]byte, c.Bytes)
			if err := kind.Quantize(got, set.floats(in.At, in.Rows*in.Cols), in.Cols, set.weights(c.Weights)); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if at, same := firstDifference(got, want); !same {
				row := at / (c.Bytes / in.Rows)
				inRow := at % (c.Bytes / in.Rows)
				t.Errorf("%s: row %d, block %d, byte %d: %#x, want %#x", name,
					row, inRow/kind.BlockBytes(), inRow%kind.BlockBytes(), got[at], want[at])
			}
		}
		if len(written) != 27 {
			t.Errorf("%s: only %d types are written: %v", file, len(written), written)
		}
	}
}

// TestGGMLGoldenRefused guards that rows are refused where the reference writes scales
// that it then does not let pass.
func TestGGMLGoldenRefused(t *testing.T) {
	for file, set := range vectorSets(t) {
		for _, c := range set.Refused {
			kind, in := ggmlType(t, c.Type), set.Inputs[c.Input]
			size, _ := kind.RowBytes(int64(in.Rows * in.Cols))
			err := kind.Quantize(make([]byte, size), set.floats(in.At, in.Rows*in.Cols), in.Cols, set.weights(c.Weights))
			var value *block.GGMLValueError
			if !errors.As(err, &value) || value.Type != kind {
				t.Errorf("%s: %s of %s with weights %q: %v", file, kind, c.Input, c.Weights, err)
			}
		}
	}
}

// TestGGMLGoldenDecoded guards the decoders on arbitrary bytes, most of which no
// quantizer writes.
func TestGGMLGoldenDecoded(t *testing.T) {
	for file, set := range vectorSets(t) {
		if len(set.Decoded) < 25 {
			t.Errorf("%s: only %d types", file, len(set.Decoded))
		}
		for _, c := range set.Decoded {
			kind := ggmlType(t, c.Type)
			n := c.Bytes / kind.BlockBytes() * kind.BlockElements()
			got, want := make([]float32, n), set.floats(c.Numbers, n)
			if err := kind.Decode(got, set.blob[c.At:][:c.Bytes]); err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
					t.Errorf("%s: %s: block %d, element %d is %g, want %g", file, kind,
						i/kind.BlockElements(), i%kind.BlockElements(), got[i], want[i])
					break
				}
			}
		}
	}
}

// TestGGMLGoldenDrawn compares many more rows, of which only digests are kept: draws of
// numbers as testdata/gen/ggml_vectors.py makes them.
func TestGGMLGoldenDrawn(t *testing.T) {
	const cols = 512
	digests := vectorSets(t)["vectors.json"].Digests
	if len(digests) < 600 {
		t.Fatalf("only %d digests", len(digests))
	}
	inputs := make(map[string][]float32)
	for _, c := range digests {
		kind := ggmlType(t, c.Type)
		src := inputs[c.Kind]
		if len(src) != c.Rows*cols {
			src = drawnRows(t, c.Kind, c.Rows, cols)
			inputs[c.Kind] = src
		}
		size, _ := kind.RowBytes(int64(len(src)))
		data, got := make([]byte, size), "refused"
		if err := kind.Quantize(data, src, cols, drawnWeights(t, c.Weights, cols)); err == nil {
			digest := sha256.Sum256(data)
			got = hex.EncodeToString(digest[:])
		}
		if got != c.SHA256 {
			t.Errorf("%s of %s numbers with weights %q differs", kind, c.Kind, c.Weights)
		}
	}
}

// draw returns number i of a stream of random ones (splitmix64).
func draw(stream, i int) uint64 {
	z := (uint64(i+1) + uint64(stream)<<32) * 0x9E3779B97F4A7C15
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// bell adds four 16-bit numbers, about zero.
func bell(z uint64) float64 {
	total := z&0xffff + z>>16&0xffff + z>>32&0xffff + z>>48
	return (float64(total) - 131070) * 0x1p-21
}

// low returns a number from 0 to n-1.
func low(z uint64, n int) int { return int(z&0xffff) % n }

func drawnRows(t *testing.T, kind string, rows, cols int) []float32 {
	t.Helper()
	numbers := make([]float32, rows*cols)
	for i := range numbers {
		z, second, row := draw(1, i), draw(2, i), i/cols
		var x float64
		switch kind {
		case "bell":
			x = bell(z)
		case "heavy":
			x = math.Ldexp(bell(z), min(bits.TrailingZeros64(second), 12))
		case "offset":
			x = bell(z) + 2*bell(draw(4, i/32))
		case "scaled":
			x = math.Ldexp(bell(z), low(draw(3, i/16), 24)-12)
		case "few":
			x = math.Ldexp(float64(low(z, 19)-9), -(row % 12))
		case "wild":
			x = math.Ldexp(1+float64(low(second, 1<<16))*0x1p-16, low(z, 58)-45)
			if z>>63 != 0 {
				x = -x
			}
		case "sparse":
			if low(second, 16) == 0 {
				x = bell(z)
			}
		case "tiny":
			x = math.Ldexp(bell(z), -30-row)
		case "large":
			x = math.Ldexp(bell(z), 19)
		case "huge": // beyond some types
			x = math.Ldexp(bell(z), 21)
		default:
			t.Fatalf("no kind %q", kind)
		}
		numbers[i] = float32(x)
	}
	return numbers
}

func drawnWeights(t *testing.T, kind string, cols int) []float32 {
	t.Helper()
	if kind == "" {
		return nil
	}
	weights := make([]float32, cols)
	for i := range weights {
		z := draw(5, i)
		var w float64
		switch kind {
		case "mild":
			w = 1 + float64(low(z, 1024))/256
		case "holes":
			if z>>63 != 0 {
				w = float64(low(z, 1024)) / 256
			}
		case "extreme":
			w = math.Ldexp(1+float64(low(z, 1024))/1024, int(z>>16%100)-60)
		case "spikes":
			w = 0x1p-40
			if i%32 == 5 {
				w = 0x1p20
			}
		default:
			t.Fatalf("no weights %q", kind)
		}
		weights[i] = float32(w)
	}
	return weights
}

func littleEndian(numbers []float32) []byte {
	out := make([]byte, 0, 4*len(numbers))
	for _, x := range numbers {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(x))
	}
	return out
}

func firstDifference(a, b []byte) (at int, same bool) {
	if bytes.Equal(a, b) {
		return 0, true
	}
	for i := range a {
		if a[i] != b[i] {
			return i, false
		}
	}
	return len(a), false
}
