package gguf_test

import (
	"math"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
)

// key begins a pair, or a whole file of one.
func key(name string) *builder { return header(0, 1).put(name) }

// one is a file of one tensor, described by hand up to its offset.
func one() *builder { return header(1, 0) }

// Every rule has its own words, and says where.
func TestNewRefuses(t *testing.T) {
	str, u32, boolean, array := uint32(gguf.String), uint32(gguf.Uint32), uint32(gguf.Bool), uint32(gguf.Array)
	tests := []struct {
		name  string
		file  *builder
		want  string
		place int64
	}{
		{"empty", new(builder), "file is empty", 0},
		{"other magic", new(builder).put([]byte("gguf"), make([]byte, 30)), `file starts with "gguf", not with "GGUF"`, 0},
		{"shorter than the magic", new(builder).put([]byte("GG")), `file starts with "GG", not with "GGUF"`, 0},
		{"older format", new(builder).put([]byte("tjgg"), make([]byte, 30)), "a GGJT file of 2023", 0},
		{"pointer", new(builder).put([]byte("version https://git-lfs.github.com/spec/v1\n")), `file starts with "vers", not with "GGUF"; it is a Git LFS pointer`, 0},
		{"only a magic", new(builder).put([]byte("GGUF"), uint32(3)), "file has 8 bytes, too few for a header", 0},
		{"version 0", new(builder).put([]byte("GGUF"), uint32(0), make([]byte, 16)), "version 0 does not exist", 4},
		{"version 1", new(builder).put([]byte("GGUF"), uint32(1), make([]byte, 16)), "version 1 is no longer supported", 4},
		{"version 4", new(builder).put([]byte("GGUF"), uint32(4), make([]byte, 16)), "version 4 is not known, 3 is the newest", 4},
		{"big-endian", new(builder).put([]byte("GGUF"), uint32(0x03000000), make([]byte, 16)), "version is 0x03000000: the file is big-endian", 4},
		{"too many tensors for the file", header(100, 0).put(make([]byte, 2399)), "100 tensors are more than a file of 2423 bytes can list", 8},
		{"too many keys for the file", header(0, 100).put(make([]byte, 1399)), "100 keys are more than a file of 1423 bytes can list", 16},
		{"negative counts", header(-1, -1), "18446744073709551615 tensors are more than", 8},
		{"too many keys", header(0, 1<<16+1).put(make([]byte, 14<<16+14)), "65537 keys are above the limit of 65536", 16},

		{"key cut", header(0, 1).put(uint64(40), make([]byte, 20)), "key of 40 bytes runs past the end of the file, which has 52", 24},
		{"key length beyond the limit", header(0, 1).put(uint64(1<<30+1), make([]byte, 20)), "key of 1073741825 bytes is above the limit of 1073741824", 24},
		{"key empty", key("").put(u32, uint32(7), make([]byte, 8)), "key is empty", 24},
		{"key with NUL", key("general.alignment\x00").put(u32, uint32(7)), "key holds a NUL byte", 24},
		{"key not UTF-8", key("a\xff").put(u32, uint32(7)), "key is not valid UTF-8", 24},
		{"key too long", key(strings.Repeat("k", 65536)).put(u32, uint32(7)), "key has 65536 bytes, at most 65535 are allowed", 24},
		{"key twice", header(0, 2).put("k", u32, uint32(7), "k", str, "x"), `key "k": key is there twice`, 24 + 17},
		{"file ends before the type", key("key....").put([]byte("xx")), `key "key....": file ends inside the header`, 39},
		{"value type unknown", key("k").put(uint32(13), make([]byte, 8)), `key "k": value type 13 is unknown, known are those below 13`, 33},
		{"value cut", key("k").put(uint32(gguf.Uint64), uint32(7)), `key "k": file ends inside the header`, 37},
		{"string cut", key("k").put(str, uint64(5), []byte("four")), `key "k": string of 5 bytes runs past the end of the file, which has 49`, 37},
		{"boolean neither", key("k").put(boolean, uint8(2)), `key "k": boolean is 2, neither 0 nor 1`, 37},
		{"boolean of an array neither", key("k").put(array, boolean, uint64(3), []byte{0, 1, 9}), `key "k": boolean is 9`, 51},
		{"element type unknown", key("k").put(array, uint32(14), uint64(0)), "value type 14 is unknown", 37},
		{"array of arrays", key("k").put(array, array, uint64(0)), "arrays of arrays are not supported", 37},
		{"array beyond the limit", key("k").put(array, u32, uint64(1<<30+1)), "array of 1073741825 elements is above the limit", 41},
		{"array cut", key("k").put(array, u32, uint64(2), uint32(1), []byte{1, 2, 3}), "array of 2 u32 runs past the end of the file, which has 56 bytes", 41},
		{"array of more strings than fit", key("k").put(array, str, uint64(2), "1234567"), "array of 2 str runs past the end", 41},
		{"string of an array cut", key("k").put(array, str, uint64(2), "", uint64(9), []byte("eight...")), "string of 9 bytes runs past the end", 57},

		{"alignment of another type", key("general.alignment").put(uint32(gguf.Uint64), uint64(32)), `key "general.alignment": is u64, must be u32`, 24},
		{"alignment is an array", key("general.alignment").put(array, u32, uint64(1), uint32(32)), `is array of 1 u32, must be u32`, 24},
		{"alignment 0", key("general.alignment").put(u32, uint32(0)), "alignment 0 is not a power of two", 24},
		{"alignment 48", key("general.alignment").put(u32, uint32(48)), "alignment 48 is not a power of two", 24},

		{"name cut", one().put(uint64(40), make([]byte, 20)), "tensor name of 40 bytes runs past the end", 24},
		{"name empty", one().entry("", []int64{8}, gguf.F32, 0).pad(32), "tensor name is empty", 24},
		{"name too long", one().entry(strings.Repeat("n", 64), []int64{8}, gguf.F32, 0).pad(32), "tensor name has 64 bytes, at most 63 are allowed", 24},
		{"name with NUL", one().entry("a\x00", []int64{8}, gguf.F32, 0), "tensor name holds a NUL byte", 24},
		{"name not UTF-8", one().entry("\xc3", []int64{8}, gguf.F32, 0), "tensor name is not valid UTF-8", 24},
		{"tensor twice", header(2, 0).entry("a", []int64{8}, gguf.F32, 0).entry("a", []int64{4}, gguf.F16, 32), `tensor "a": tensor is there twice`, 57},
		{"too many dimensions", one().entry("a", []int64{1, 1, 1, 1, 1}, gguf.F32, 0), `tensor "a": 5 dimensions, at most 4 are possible`, 33},
		{"dimensions cut", one().put("abcdefgh", uint32(1), uint32(8)), `tensor "abcdefgh": file ends inside the header`, 44},
		{"dimension negative", one().entry("a", []int64{8, -2}, gguf.F32, 0), `tensor "a": dimension -2 is negative`, 45},
		{"elements overflow", one().entry("a", []int64{1 << 32, 1 << 32}, gguf.F32, 0), "shape [4294967296, 4294967296] overflows", 53},
		{"elements overflow in spite of a zero", one().entry("a", []int64{0, 1 << 32, 1 << 32}, gguf.F32, 0), "shape [4294967296, 4294967296, 0] overflows", 61},
		{"elements overflow before a zero", one().entry("a", []int64{1 << 32, 1 << 32, 0}, gguf.F32, 0), "shape [0, 4294967296, 4294967296] overflows", 61},
		{"bytes overflow", one().entry("a", []int64{1 << 61}, gguf.F64, 0), "shape [2305843009213693952] of type f64 overflows", 45},
		{"type unknown", one().entry("a", []int64{256}, 43, 0), "unknown type 43, known are those below 43", 45},
		{"type negative", one().entry("a", []int64{256}, math.MaxUint32, 0), "unknown type 4294967295", 45},
		{"type removed", one().entry("a", []int64{256}, 31, 0), "type 31 (q4_0_4_4) was removed from the format", 45},
		{"row not whole blocks", one().entry("a", []int64{16, 2}, gguf.Q8_0, 0), "rows of 16 elements are not whole blocks of type q8_0, which have 32", 53},
		{"single number in blocks", one().entry("a", nil, gguf.Q4K, 0), "a single number can't be of type q4_K", 37},
		{"offset beyond 63 bits", one().entry("a", []int64{8}, gguf.F32, math.MinInt64), "data offset 9223372036854775808 is beyond 63 bits", 49},

		{"no room for the padding", one().entry("a", []int64{0}, gguf.F32, 0).put([]byte{0, 0}), "file ends inside the padding before the data, which is aligned to 32", 57},
		{"first tensor not at the start", one().entry("a", []int64{8}, gguf.F32, 32).pad(32).put(make([]byte, 64)), `tensor "a": data offset is 32, the tensors before it end at 0`, 64},
		{"gap", header(2, 0).entry("a", []int64{8}, gguf.F32, 0).entry("b", []int64{8}, gguf.F32, 64).pad(32).put(make([]byte, 96)),
			`tensor "b": data offset is 64, the tensors before it end at 32`, 96},
		{"overlap", header(2, 0).entry("a", []int64{9}, gguf.F32, 0).entry("b", []int64{8}, gguf.F32, 32).pad(32).put(make([]byte, 96)),
			`tensor "b": data offset is 32, the tensors before it end at 64`, 96},
		{"not aligned", header(2, 0).entry("a", []int64{1}, gguf.F32, 0).entry("b", []int64{8}, gguf.F32, 4).pad(32).put(make([]byte, 96)),
			`tensor "b": data offset is 4, the tensors before it end at 32`, 96},
		{"data cut", one().entry("a", []int64{8}, gguf.F32, 0).pad(32).put(make([]byte, 31)), `tensor "a": 32 bytes at offset 0 run past the end of the data, which has 31`, 64},
		{"data of the second cut", header(2, 0).entry("a", []int64{8}, gguf.F32, 0).entry("b", []int64{8}, gguf.F32, 32).pad(32).put(make([]byte, 63)),
			`tensor "b": 32 bytes at offset 32 run past the end of the data, which has 63`, 96},
		{"data of exabytes", one().entry("a", []int64{1 << 61}, gguf.I8, 0).pad(32).put(make([]byte, 64)), "2305843009213693952 bytes at offset 0 run past the end", 64},
		{"empty tensor behind the end", header(2, 0).entry("a", []int64{1}, gguf.F32, 0).entry("b", []int64{0}, gguf.F32, 32).pad(32).put(uint32(0)),
			`tensor "b": 0 bytes at offset 32 run past the end of the data, which has 4`, 96},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := open(test.file.Bytes())
			if err == nil {
				t.Fatal("accepted")
			}
			if fe := checkFormatError(t, err, test.want); fe.Offset != test.place {
				t.Errorf("at byte %d, want %d", fe.Offset, test.place)
			}
		})
	}
}

// Files that are odd but allowed.
func TestNewAccepts(t *testing.T) {
	u32 := uint32(gguf.Uint32)
	tests := []struct {
		name                  string
		file                  *builder
		tensors               string
		missing, trailing     int64
		dataOffset, alignment int64
	}{
		{"nothing", header(0, 0), "", 0, 0, 24, 32},
		{"nothing, padded", header(0, 0).pad(32), "", 0, 0, 24, 32},
		{"nothing, then more", header(0, 0).pad(32).put(uint8(1)), "", 0, 1, 24, 32},
		{"version 2", new(builder).put([]byte("GGUF"), uint32(2), uint64(0), uint64(0)), "", 0, 0, 24, 32},
		{"key of other letters", key("größe").put(u32, uint32(1)), "", 0, 0, 47, 32},
		{"longest key", key(strings.Repeat("k", 65535)).put(u32, uint32(1)), "", 0, 0, 24 + 8 + 65535 + 8, 32},
		{"longest name", one().entry(strings.Repeat("n", 63), []int64{8}, gguf.F32, 0).pad(32).put(make([]byte, 32)), strings.Repeat("n", 63) + " f32 [8]", 0, 0, 128, 32},
		{"name like a path", one().entry("../../etc", []int64{8}, gguf.F32, 0).pad(32).put(make([]byte, 32)), "../../etc f32 [8]", 0, 0, 96, 32},
		{"scalar", one().entry("a", nil, gguf.F16, 0).pad(32).put(uint16(1)).pad(32), "a f16 []", 0, 0, 64, 32},
		{"dimensions are turned around", one().entry("a", []int64{4, 3, 2, 1}, gguf.I8, 0).pad(32).put(make([]byte, 32)), "a i8 [1, 2, 3, 4]", 0, 0, 96, 32},
		{"blocks", one().entry("a", []int64{64, 3}, gguf.Q4_0, 0).pad(32).put(make([]byte, 128)), "a q4_0 [3, 64]", 0, 0, 96, 32},
		{"last tensor not padded", one().entry("a", []int64{5}, gguf.F32, 0).pad(32).put(make([]byte, 20)), "a f32 [5]", 12, 0, 64, 32},
		{"half padded", one().entry("a", []int64{5}, gguf.F32, 0).pad(32).put(make([]byte, 24)), "a f32 [5]", 8, 0, 64, 32},
		{"trailing bytes", one().entry("a", []int64{5}, gguf.F32, 0).pad(32).put(make([]byte, 33)), "a f32 [5]", 0, 1, 64, 32},
		{"empty tensors share a place", header(3, 0).entry("a", []int64{0}, gguf.F32, 0).entry("b", []int64{32, 0}, gguf.Q8_0, 0).
			entry("c", []int64{1}, gguf.I8, 0).pad(32).put(uint8(1)).pad(32), "a f32 [0]; b q8_0 [0, 32]; c i8 [1]", 0, 0, 160, 32},
		{"alignment 1", header(1, 1).put("general.alignment", u32, uint32(1)).entry("a", []int64{3}, gguf.I8, 0).put([]byte{1, 2, 3}), "a i8 [3]", 0, 0, 90, 1},
		{"alignment behind other keys", header(1, 2).put("k", u32, uint32(7), "general.alignment", u32, uint32(64)).
			entry("a", []int64{3}, gguf.I8, 0).pad(64).put([]byte{1, 2, 3}).pad(64), "a i8 [3]", 0, 0, 128, 64},
		{"huge alignment without tensors", key("general.alignment").put(u32, uint32(1<<31)), "", 0, 0, 57, 1 << 31},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := mustOpen(t, test.file.Bytes())
			var tensors []string
			for _, s := range f.Tensors() {
				tensors = append(tensors, s.Name+" "+s.Type.String()+" "+s.Shape.String())
			}
			if got := strings.Join(tensors, "; "); got != test.tensors {
				t.Errorf("tensors %s, want %s", got, test.tensors)
			}
			if f.MissingPadding() != test.missing || f.Trailing() != test.trailing {
				t.Errorf("%d bytes missing, %d trailing, want %d and %d", f.MissingPadding(), f.Trailing(), test.missing, test.trailing)
			}
			if f.DataOffset() != test.dataOffset || f.Alignment() != test.alignment || f.Size() != int64(test.file.Len()) {
				t.Errorf("data at %d, alignment %d, want %d and %d", f.DataOffset(), f.Alignment(), test.dataOffset, test.alignment)
			}
		})
	}
}

// What is read are the bytes that were written, at their places.
func TestFile(t *testing.T) {
	data := small()
	f, err := gguf.Open(writeTemp(t, data))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, ok := f.Lookup("b")
	if !ok || b.Offset != f.DataOffset()+32 || b.End() != b.Offset+20 || b.Size() != 20 || b.NumElements() != 5 || b.RowSize() != 20 {
		t.Errorf("b: %+v", b)
	}
	if got := sectionBytes(t, f, "b"); got[0] != 33 || got[19] != 52 {
		t.Errorf("b holds %v", got)
	}
	if a, _ := f.Lookup("a"); a.RowSize() != 16 || a.Shape.String() != "[2, 4]" {
		t.Errorf("a: %+v, row of %d bytes", a, a.RowSize())
	}
	a, _ := f.Lookup("a")
	_ = append(a.Shape, 99) // must not reach into the next tensor's
	if b, _ := f.Lookup("b"); b.Shape.String() != "[5]" {
		t.Errorf("b has shape %v", b.Shape)
	}
	if name, err := f.Metadata().Text("general.name"); name != "small" || err != nil || f.Version() != 3 {
		t.Errorf("name %q %v, version %d", name, err, f.Version())
	}
	if _, ok := f.Lookup("c"); ok {
		t.Error("found what is not there")
	}
	if _, err := f.Section("c\n"); err == nil || err.Error() != `no tensor "c\n"` {
		t.Errorf("section of nothing: %v", err)
	}
}
