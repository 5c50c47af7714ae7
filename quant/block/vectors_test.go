package block_test

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestTorch guards that files come out as torch writes them: its own casts, and
// where it rounds float64 twice, the exact result. Written by
// testdata/gen/float_vectors.py.
func TestTorch(t *testing.T) {
	data, err := os.ReadFile("testdata/torch_float.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Encode32, Decode32, Encode64 map[string]string
		TorchRoundsTwice             map[string]string `json:"torch_rounds_twice"`
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	for _, f := range formats() {
		name := f.dtype.String()
		c := codecOf(t, f.dtype)
		for _, v := range parse(t, vectors.Encode32[name]) {
			x := math.Float32frombits(uint32(v.in))
			got, want := f.encode32(c, x)[0], int(v.out)
			if x != x { // payloads differ between torch's own paths
				if !f.isNaN(got) || !f.isNaN(want) {
					t.Errorf("%s: NaN %#x became %#x, in torch %#x", name, v.in, got, want)
				}
				continue
			}
			sameCode(t, name+" of float32 "+strconv.FormatUint(v.in, 16), got, want)
		}
		for _, v := range parse(t, vectors.Decode32[name]) {
			src := binary.LittleEndian.AppendUint64(nil, v.in)[:f.bits/8]
			got := make([]float32, 1)
			c.Decode32(got, src)
			want := math.Float32frombits(uint32(v.out))
			if want != want && got[0] != got[0] {
				continue
			}
			same32(t, label(f.dtype, int(v.in)), got[0], want)
		}
		if f.bits == 8 {
			continue
		}
		for _, v := range append(parse(t, vectors.Encode64[name]), parse(t, vectors.TorchRoundsTwice[name])...) {
			got := f.encode64(c, math.Float64frombits(v.in))[0]
			sameCode(t, name+" of float64 "+strconv.FormatUint(v.in, 16), got, int(v.out))
		}
	}
}

type vector struct{ in, out uint64 }

func parse(t *testing.T, text string) []vector {
	t.Helper()
	var all []vector
	for entry := range strings.FieldsSeq(text) {
		in, out, _ := strings.Cut(entry, ">")
		x, err := strconv.ParseUint(in, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		y, err := strconv.ParseUint(out, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, vector{x, y})
	}
	if len(all) < 12 {
		t.Fatalf("only %d vectors", len(all))
	}
	return all
}
