package safetensors_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tensor"
)

// entry is the plain description of an F32 vector of two elements.
const entry = `"dtype":"F32","shape":[2],"data_offsets":[0,8]`

// Files the format allows, among them some that no known writer makes.
func TestNewAccepts(t *testing.T) {
	tests := []struct {
		name   string
		header string
		data   int
		want   string // names in data order
	}{
		{"no tensor", `{}`, 0, ``},
		{"one tensor", `{"w":{` + entry + `}}`, 8, `w`},
		{"fields in other order", `{"w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}`, 8, `w`},
		{"white space everywhere", " \t\r\n{ \"w\" :\n{\t\"dtype\" : \"F32\" , \"shape\" : [ 2 ] , \"data_offsets\" : [ 0 , 8 ] } }\r\n ", 8, `w`},
		{"length not a multiple of 8", `{} `, 0, ``},
		{"escapes in the name", `{"\u0077\n\ud83d\ude00":{` + entry + `}}`, 8, "w\n\U0001F600"},
		{"escapes in field and dtype", `{"w":{"dt\u0079pe":"F\u00332","shape":[2],"data_offsets":[0,8]}}`, 8, `w`},
		{"empty name", `{"":{` + entry + `}}`, 8, ``},
		{"name like a path", `{"../../etc/passwd":{` + entry + `}}`, 8, `../../etc/passwd`},
		{"name with NUL", `{"a\u0000b":{` + entry + `}}`, 8, "a\x00b"},
		{"names differ in case", `{"A":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2, `A a`},
		{"names differ in normal form", `{"\u00e9":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"e\u0301":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2, "\u00e9 e\u0301"},
		{"scalar", `{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, 4, `w`},
		{"empty tensor alone", `{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, 0, `w`},
		{"several empty tensors in one place",
			`{"c":{"dtype":"F32","shape":[0],"data_offsets":[1,1]},"b":{"dtype":"F32","shape":[3,0],"data_offsets":[1,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"d":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`,
			2, `a b c d`},
		{"zero dimension before a huge one", `{"w":{"dtype":"F32","shape":[0,9223372036854775807,9223372036854775807],"data_offsets":[0,0]}}`, 0, `w`},
		{"listed in reverse", `{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 3, `a b`},
		{"unaligned start", `{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F64","shape":[1],"data_offsets":[1,9]}}`, 9, `a b`},
		{"F4 in pairs", `{"w":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}}`, 3, `w`},
		{"F6 in fours", `{"w":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}`, 3, `w`},
		{"most dimensions", `{"w":{"dtype":"U8","shape":[1` + strings.Repeat(",1", tensor.MaxDims-1) + `],"data_offsets":[0,1]}}`, 1, `w`},
		{"metadata only", `{"__metadata__":{"format":"pt"}}`, 0, ``},
		{"metadata empty", `{"__metadata__":{}}`, 0, ``},
		{"metadata last, with odd text", `{"w":{` + entry + `},"__metadata__":{"":"\u0000","k\"":"\\\/\b"}}`, 8, `w`},
		{"name almost that of metadata", `{"__METADATA__":{` + entry + `}}`, 8, `__METADATA__`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := mustOpen(t, file(test.header, test.data))
			var names []string
			end := f.DataOffset()
			for _, tensor := range f.Tensors() {
				names = append(names, tensor.Name)
				if tensor.Offset != end {
					t.Errorf("tensor %q starts at %d, want %d", tensor.Name, tensor.Offset, end)
				}
				end = tensor.End()
			}
			if got := strings.Join(names, " "); got != test.want {
				t.Errorf("names %q, want %q", got, test.want)
			}
			if end != f.Size() {
				t.Errorf("tensors end at %d, the file at %d", end, f.Size())
			}
		})
	}
}

func TestNewAcceptsAllDTypes(t *testing.T) {
	for _, d := range tensor.All() {
		header := fmt.Sprintf(`{"w":{"dtype":%q,"shape":[8],"data_offsets":[0,%d]}}`, d.Safetensors(), d.Bits())
		f := mustOpen(t, file(header, int(d.Bits())))
		if got := f.Tensors()[0].DType; got != d {
			t.Errorf("dtype %v, want %v", got, d)
		}
	}
	if n := len(tensor.All()); n != 22 {
		t.Errorf("%d dtypes, the format has 22", n)
	}
}

// Every rule, each broken alone. want is a part of the message, so that a file
// refused for another reason is noticed.
func TestNewRejects(t *testing.T) {
	one := func(fields string) string { return `{"w":{` + fields + `}}` }
	tests := []struct {
		name   string
		header string
		data   int
		want   string
	}{
		{"empty header", ``, 0, `header length is 0`},
		{"only white space", `  `, 0, `ends early`},
		{"byte order mark", "\uFEFF{}", 0, `byte 0xef`},
		{"byte order mark after space", " \uFEFF{}", 0, `byte 0xef`},
		{"array", `[]`, 0, `byte 0x5b`},
		{"string", `"{}"`, 0, `byte 0x22`},
		{"null", `null`, 0, `byte 0x6e`},
		{"NUL in front", "\x00{}", 0, `byte 0x00`},
		{"NUL padding", "{}\x00\x00", 0, `unexpected '\x00'`},
		{"vertical tab padding", "{}\v", 0, `unexpected '\v'`},
		{"no-break space padding", "{}\u00a0", 0, `unexpected '\u00a0'`},
		{"second object", `{}{}`, 0, `unexpected '{'`},
		{"not closed", `{"w":{` + entry + `}`, 8, `ends early`},
		{"trailing comma", `{"w":{` + entry + `},}`, 8, `want a key`},
		{"comment", `{/**/}`, 0, `want a key`},
		{"single quotes", `{'w':{}}`, 0, `want a key`},
		{"duplicate tensor", `{"w":{` + entry + `},"w":{` + entry + `}}`, 8, `duplicate key "w"`},
		{"duplicate tensor, escaped", `{"w":{` + entry + `},"\u0077":{` + entry + `}}`, 8, `duplicate key "w"`},
		{"duplicate metadata", `{"__metadata__":{},"__metadata__":{}}`, 0, `duplicate key "__metadata__"`},
		{"duplicate metadata key", `{"__metadata__":{"a":"1","a":"1"}}`, 0, `duplicate key "a"`},
		{"duplicate dtype", one(`"dtype":"F32",` + entry), 8, `duplicate key "dtype"`},
		{"duplicate offsets", one(entry + `,"data_offsets":[0,8]`), 8, `duplicate key "data_offsets"`},
		{"invalid UTF-8 in a name", "{\"\xff\":{" + entry + `}}`, 8, `invalid UTF-8`},
		{"overlong UTF-8", "{\"\xc0\xaf\":{" + entry + `}}`, 8, `invalid UTF-8`},
		{"encoded surrogate", "{\"\xed\xa0\x80\":{" + entry + `}}`, 8, `invalid UTF-8`},
		{"lone high surrogate", `{"\ud800":{` + entry + `}}`, 8, `lone surrogate`},
		{"lone low surrogate", `{"\udc00":{` + entry + `}}`, 8, `lone surrogate`},
		{"surrogates swapped", `{"\udc00\ud800":{` + entry + `}}`, 8, `lone surrogate`},
		{"newline in a name", "{\"a\nb\":{" + entry + `}}`, 8, `control character`},

		{"metadata null", `{"__metadata__":null}`, 0, `__metadata__ is null`},
		{"metadata array", `{"__metadata__":[]}`, 0, `__metadata__ is an array`},
		{"metadata number", `{"__metadata__":{"a":1}}`, 0, `holds a number`},
		{"metadata value null", `{"__metadata__":{"a":null}}`, 0, `holds null`},
		{"metadata value boolean", `{"__metadata__":{"a":true}}`, 0, `holds a boolean`},
		{"metadata nested", `{"__metadata__":{"a":{}}}`, 0, `holds an object`},
		{"metadata nested array", `{"__metadata__":{"a":["b"]}}`, 0, `holds an array`},
		{"tensor named metadata", `{"__metadata__":{` + entry + `}}`, 8, `holds an array`},
		{"tensor named metadata, escaped", `{"\u005f_metadata__":{` + entry + `}}`, 8, `holds an array`},

		{"entry null", `{"w":null}`, 0, `entry is null`},
		{"entry array form", `{"w":["F32",[2],[0,8]]}`, 8, `entry is an array`},
		{"entry string", `{"w":"F32"}`, 8, `entry is a string`},
		{"entry empty", `{"w":{}}`, 0, `dtype is missing`},
		{"extra field", one(entry + `,"strides":[1]`), 8, `unknown field "strides"`},
		{"extra empty field", one(entry + `,"":null`), 8, `unknown field ""`},
		{"field in other case", one(`"DType":"F32","shape":[2],"data_offsets":[0,8]`), 8, `unknown field "DType"`},
		{"field with long s", one(`"dtype":"F32","ſhape":[2],"data_offsets":[0,8]`), 8, `unknown field "ſhape"`},
		{"dtype missing", one(`"shape":[2],"data_offsets":[0,8]`), 8, `dtype is missing`},
		{"shape missing", one(`"dtype":"F32","data_offsets":[0,8]`), 8, `shape is missing`},
		{"shape missing, scalar size", one(`"dtype":"F32","data_offsets":[0,4]`), 4, `shape is missing`},
		{"offsets missing", one(`"dtype":"F32","shape":[2]`), 8, `data_offsets are missing`},
		{"offsets missing, empty tensor", one(`"dtype":"F32","shape":[0]`), 0, `data_offsets are missing`},

		{"dtype unknown", one(`"dtype":"F33","shape":[2],"data_offsets":[0,8]`), 8, `unknown dtype "F33"`},
		{"dtype lower case", one(`"dtype":"f32","shape":[2],"data_offsets":[0,8]`), 8, `unknown dtype "f32"`},
		{"dtype empty", one(`"dtype":"","shape":[2],"data_offsets":[0,8]`), 8, `unknown dtype ""`},
		{"dtype with space", one(`"dtype":"F32 ","shape":[2],"data_offsets":[0,8]`), 8, `unknown dtype "F32 "`},
		{"dtype null", one(`"dtype":null,"shape":[2],"data_offsets":[0,8]`), 8, `dtype is null`},
		{"dtype object", one(`"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]`), 8, `dtype is an object`},

		{"shape null", one(`"dtype":"F32","shape":null,"data_offsets":[0,4]`), 4, `shape is null`},
		{"shape number", one(`"dtype":"F32","shape":2,"data_offsets":[0,8]`), 8, `shape is a number`},
		{"shape nested", one(`"dtype":"F32","shape":[[2]],"data_offsets":[0,8]`), 8, `dimension is an array`},
		{"dimension null", one(`"dtype":"F32","shape":[null],"data_offsets":[0,8]`), 8, `dimension is null`},
		{"dimension string", one(`"dtype":"F32","shape":["2"],"data_offsets":[0,8]`), 8, `dimension is a string`},
		{"dimension negative", one(`"dtype":"F32","shape":[-2],"data_offsets":[0,8]`), 8, `dimension -2`},
		{"dimensions negative twice", one(`"dtype":"F32","shape":[-1,-2],"data_offsets":[0,8]`), 8, `dimension -1`},
		{"dimension minus zero", one(`"dtype":"F32","shape":[-0],"data_offsets":[0,0]`), 0, `dimension -0`},
		{"dimension with a point", one(`"dtype":"F32","shape":[2.0],"data_offsets":[0,8]`), 8, `dimension 2.0`},
		{"dimension with an exponent", one(`"dtype":"F32","shape":[2e0],"data_offsets":[0,8]`), 8, `dimension 2e0`},
		{"dimension with a plus", one(`"dtype":"F32","shape":[+2],"data_offsets":[0,8]`), 8, `unexpected '+'`},
		{"dimension with a leading zero", one(`"dtype":"F32","shape":[02],"data_offsets":[0,8]`), 8, `leading zero`},
		{"dimension hexadecimal", one(`"dtype":"F32","shape":[0x2],"data_offsets":[0,8]`), 8, `unexpected 'x'`},
		{"dimension of 65 bits", one(`"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]`), 0, `not a plain integer of 64 bits`},
		{"dimension of 64 bits", one(`"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]`), 0, `beyond 63 bits`},
		{"product overflows", one(`"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]`), 0, `overflows`},
		{"product overflows, then zero", one(`"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]`), 0, `overflows`},
		{"bits overflow", one(`"dtype":"F64","shape":[288230376151711744],"data_offsets":[0,0]`), 0, `overflows`},
		{"product overflows, many dimensions", one(`"dtype":"U8","shape":[2` + strings.Repeat(",2", 4000) + `],"data_offsets":[0,0]`), 0, `overflows`},
		{"too many dimensions", one(`"dtype":"U8","shape":[1` + strings.Repeat(",1", tensor.MaxDims) + `],"data_offsets":[0,1]`), 1, `more than 4096 dimensions`},
		{"F4 half a byte", one(`"dtype":"F4","shape":[3],"data_offsets":[0,2]`), 2, `whole number of bytes`},
		{"F6 half a byte", one(`"dtype":"F6_E3M2","shape":[2],"data_offsets":[0,2]`), 2, `whole number of bytes`},

		{"offsets null", one(`"dtype":"F32","shape":[2],"data_offsets":null`), 8, `data_offsets is null`},
		{"offsets empty", one(`"dtype":"F32","shape":[2],"data_offsets":[]`), 8, `not two numbers`},
		{"one offset", one(`"dtype":"F32","shape":[2],"data_offsets":[8]`), 8, `not two numbers`},
		{"three offsets", one(`"dtype":"F32","shape":[2],"data_offsets":[0,8,8]`), 8, `not two numbers`},
		{"offsets object", one(`"dtype":"F32","shape":[2],"data_offsets":{"begin":0,"end":8}`), 8, `data_offsets is an object`},
		{"offset null", one(`"dtype":"F32","shape":[2],"data_offsets":[null,8]`), 8, `offset is null`},
		{"offset negative", one(`"dtype":"F32","shape":[2],"data_offsets":[-8,0]`), 8, `offset -8`},
		{"offset minus zero", one(`"dtype":"F32","shape":[2],"data_offsets":[-0,8]`), 8, `offset -0`},
		{"offset with a point", one(`"dtype":"F32","shape":[2],"data_offsets":[0.0,8]`), 8, `offset 0.0`},
		{"offset with an exponent", one(`"dtype":"F32","shape":[2],"data_offsets":[0,8e0]`), 8, `offset 8e0`},
		{"offset of 65 bits", one(`"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551624]`), 8, `not a plain integer of 64 bits`},
		{"offsets backwards", one(`"dtype":"F32","shape":[2],"data_offsets":[8,0]`), 8, `offsets [8,0) run backwards`},
		{"offsets wrap around", one(`"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,0]`), 8, `run backwards`},
		{"end past the data", one(`"dtype":"F32","shape":[2],"data_offsets":[0,8]`), 7, `run past the end of the data, which has 7 bytes`},
		{"end far past the data", one(`"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]`), 8, `overflows`},
		{"range too short", one(`"dtype":"F32","shape":[2],"data_offsets":[0,7]`), 8, `hold 7 bytes, F32 of shape [2] takes 8`},
		{"range too long", one(`"dtype":"F32","shape":[1],"data_offsets":[0,8]`), 8, `hold 8 bytes, F32 of shape [1] takes 4`},
		{"empty tensor with bytes", one(`"dtype":"F32","shape":[0],"data_offsets":[0,8]`), 8, `takes 0`},

		{"first byte unused", one(`"dtype":"F32","shape":[2],"data_offsets":[1,9]`), 9, `1 bytes before the data belong to no tensor`},
		{"hole", `{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3, `1 bytes before the data`},
		{"overlap", `{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3, `overlaps the tensor before by 1`},
		{"same range twice", `{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`, 2, `overlaps the tensor before by 2`},
		{"empty tensor inside another", `{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}`, 2, `overlaps the tensor before by 1`},
		{"empty tensor after a hole", `{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}}`, 2, `1 bytes before the data`},
		{"bytes after the data", one(entry), 9, `1 bytes after the data`},
		{"bytes without a tensor", `{}`, 1, `1 bytes after the data`},
		{"deep nesting", one(`"shape":` + strings.Repeat("[", 200)), 0, `dimension is an array`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := open(file(test.header, test.data))
			checkFormatError(t, err, test.want)
		})
	}
}

func TestNewRejectsLengths(t *testing.T) {
	tests := []struct {
		name   string
		length uint64
		rest   string
		want   string
	}{
		{"past the end by one", 3, "{}", "header of 3 bytes runs past the end of the file, which has 10"},
		{"past the end, below the limit", 100_000_000, "{}", "runs past the end"},
		{"above the limit", 100_000_001, "{}", "above the limit"},
		{"2^32", 1 << 32, "{}", "above the limit"},
		{"2^32 + 2, two when cut to 32 bits", 1<<32 + 2, "{}", "above the limit"},
		{"2^63", 1 << 63, "{}", "above the limit"},
		{"2^64 - 1", 1<<64 - 1, "{}", "above the limit"},
		{"2^64 - 8, overflows with the length field", 1<<64 - 8, "{}", "above the limit"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			data := append(binary.LittleEndian.AppendUint64(nil, test.length), test.rest...)
			_, err := open(data)
			checkFormatError(t, err, test.want)
		})
	}
	for n := range 8 {
		_, err := open(make([]byte, n))
		checkFormatError(t, err, fmt.Sprintf("file has %d bytes", n))
	}
}

// The offset must lead to the fault, the tensor must be named.
func TestFormatErrorPlace(t *testing.T) {
	tests := []struct {
		name, header, tensor, at string
	}{
		{"dtype", `{"a.b":{"shape":[1],"dtype":"I4"}}`, "a.b", `"I4"`},
		{"dimension", `{"a.b":{"shape":[7,-1]}}`, "a.b", `-1`},
		{"extra field", `{"a.b":{"extra":0}}`, "a.b", `"extra"`},
		{"syntax", `{"a.b":{"shape":[7,#]}}`, "a.b", `#`},
		{"missing field", `{"a.b":{}}`, "a.b", `"a.b"`},
		{"metadata", `{"__metadata__":{"k":"v","l":0}}`, "", `"l"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := open(file(test.header, 0))
			fe := checkFormatError(t, err, "")
			if want := int64(8 + strings.Index(test.header, test.at)); fe.Offset != want {
				t.Errorf("offset %d, want %d: %v", fe.Offset, want, fe)
			}
			if fe.Tensor != test.tensor {
				t.Errorf("tensor %q, want %q", fe.Tensor, test.tensor)
			}
		})
	}
}

// Names come from the file: they may be as long as a header and hold escape
// sequences. The message must stay one short printable line.
func TestFormatErrorIsTame(t *testing.T) {
	for _, name := range []string{
		strings.Repeat("x", 1<<20),
		strings.Repeat("ü", 1<<16),
		`\u001b]0;title\u0007`,
		`line\nbreak\r`,
		"\u202e\u2028",
	} {
		_, err := open(file(`{"`+name+`":{"dtype":"`+name+`"}}`, 0))
		checkFormatError(t, err, "unknown dtype")
	}
}

// Files that are something else, found under a name that ends in .safetensors.
func TestNewRecognises(t *testing.T) {
	tar := make([]byte, 1024)
	copy(tar, "archive/data.pkl")
	copy(tar[257:], "ustar")
	tests := []struct{ name, start, want string }{
		{"git lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"},
		{"html", "<!DOCTYPE html>\n<html>", "HTML or XML page"},
		{"html after space", "\r\n  <html><body>503</body></html>", "HTML or XML page"},
		{"html after a byte order mark", "\uFEFF<html><body>503</body></html>", "HTML or XML page"},
		{"html, very short", "<html>", "HTML or XML page"},
		{"xml", `<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>`, "HTML or XML page"},
		{"json", `{"error":"Repository not found"}`, "JSON text"},
		{"json list", `[{"error":"x"}]`, "JSON text"},
		{"text", "Entry not found", `text that begins with "Entry not found"`},
		{"text, very short", "oops\n", `text that begins with "oops"`},
		{"text with a cut character", "Zugriff verweigert für €"[:25], `text that begins with "Zugriff`},
		{"zip", "PK\x03\x04\x00\x00\x08\x08", "zip archive"},
		{"pickle 2", "\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"},
		{"pickle 4", "\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", "pickle"},
		{"gguf", "GGUF\x03\x00\x00\x00\x00\x00\x00\x00", "GGUF"},
		{"gzip", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gzip"},
		{"zstd", "\x28\xb5\x2f\xfd\x04\x00\x00\x00\x00\x03", "zstd"},
		{"hdf5", "\x89HDF\r\n\x1a\n\x00\x00\x00", "HDF5"},
		{"numpy", "\x93NUMPY\x01\x00v\x00{'descr'", "NumPy"},
		{"tar", string(tar), "tar archive"},
		{"random bytes", "\xff\x00\xfe\x01\xfd\x02\xfc\x03", "above the limit of 100000000"},
		{"control characters", "abc\x01\x02\x03\x04\x05\x06", "above the limit of 100000000"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := open([]byte(test.start))
			checkFormatError(t, err, test.want)
		})
	}
}
