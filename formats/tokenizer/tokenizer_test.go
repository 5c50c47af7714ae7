package tokenizer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tokenizer"
)

// message appends a field of bytes to a message of protocol buffers.
func message(b []byte, field int, content []byte) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3|2)
	b = binary.AppendUvarint(b, uint64(len(content)))
	return append(b, content...)
}

func number(b []byte, field int, n uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(field)<<3), n)
}

func score(b []byte, field int, f float32) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3|5)
	return binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
}

// encode writes pieces as SentencePiece does, with fields that nobody reads among them.
func encode(pieces []tokenizer.Piece) []byte {
	var out []byte
	for i, p := range pieces {
		b := score(message(nil, 1, []byte(p.Text)), 2, p.Score)
		if p.Type != tokenizer.Normal {
			b = number(b, 3, uint64(p.Type))
		}
		if i%2 == 1 {
			b = number(message(b, 200, []byte("later")), 201, 7)
		}
		out = message(out, 1, b)
	}
	return number(message(out, 2, []byte{0x18, 2}), 9, 1)
}

// TestSentencePiece reads what was written, piece by piece.
func TestSentencePiece(t *testing.T) {
	want := []tokenizer.Piece{
		{"<unk>", 0, tokenizer.Unknown}, {"<s>", 0, tokenizer.Control}, {"\u2581the", -1.5, tokenizer.Normal}, {"<0x0A>", 0, tokenizer.Byte},
		{"", -2, tokenizer.Unused}, {"我", float32(math.Inf(-1)), tokenizer.UserDefined}, {strings.Repeat("x", 300), 1, tokenizer.Normal},
	}
	got, err := tokenizer.ParseSentencePiece(encode(want))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

// TestSentencePieceHostile has files that lie.
func TestSentencePieceHostile(t *testing.T) {
	good := encode([]tokenizer.Piece{{"a", 1, tokenizer.Normal}, {"b", 2, tokenizer.Byte}})
	for n := range good {
		if n == 0 {
			continue
		}
		pieces, err := tokenizer.ParseSentencePiece(good[:n])
		if err == nil && len(pieces) > 2 {
			t.Errorf("%d bytes of a file: %v", n, pieces)
		}
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "no pieces"},
		{"no pieces", message(nil, 2, []byte{0x18, 2}), "no pieces"},
		{"length beyond the end", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, "bytes are missing"},
		{"length of 2^64-1", append([]byte{0x0a}, bytes.Repeat([]byte{0xff}, 9)...), "does not end"},
		{"number of eleven bytes", append(bytes.Repeat([]byte{0x80}, 11), 1), "does not end"},
		{"field 0", []byte{0x02, 0}, "field 0"},
		{"wire type 3", []byte{0x0b}, "wire type 3"},
		{"type 0", message(nil, 1, number(nil, 3, 0)), "type 0"},
		{"type 7", message(nil, 1, number(nil, 3, 7)), "type 7"},
		{"text that is not UTF-8", message(nil, 1, message(nil, 1, []byte{0xff})), "not UTF-8"},
		{"a text longer than its piece", append([]byte{0x0a, 2, 0x0a, 9}, "123456789"...), "bytes are missing"},
		{"a score that ends", message(nil, 1, []byte{0x15, 0, 0}), "bytes are missing"},
	} {
		_, err := tokenizer.ParseSentencePiece(c.data)
		if _, ok := errors.AsType[*tokenizer.FormatError](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %q", c.name, err, c.want)
		}
	}
}

// TestFast reads both forms of merges, and the tokens that were added.
func TestFast(t *testing.T) {
	const text = `{"added_tokens":[{"id":9,"content":"<x>","special":true,"normalized":false},{"id":3,"content":"y"}],
		"model":{"type":"BPE","byte_fallback":true,"vocab":{"a":0,"b":2,"ab":1},"merges":%s}}`
	for _, c := range []struct {
		merges string
		want   [][2]string
	}{
		{`["a b"]`, [][2]string{{"a", "b"}}},
		{`["a b c"]`, [][2]string{{"a", "b c"}}},
		{`[["a","b"],["a b","c"]]`, [][2]string{{"a", "b"}, {"a b", "c"}}},
		{`[]`, nil},
	} {
		f, err := tokenizer.ParseFast(fmt.Appendf(nil, text, c.merges))
		if err != nil {
			t.Errorf("%s: %v", c.merges, err)
			continue
		}
		if !slices.Equal(f.Merges, c.want) || !f.ByteFallback || f.Model != "BPE" || len(f.Vocab) != 3 || f.Vocab[2] != "b" {
			t.Errorf("%s: %+v", c.merges, f)
		}
		if want := []tokenizer.AddedToken{{ID: 9, Content: "<x>", Special: true}, {ID: 3, Content: "y"}}; !slices.Equal(f.Added, want) {
			t.Errorf("added tokens %v, want %v", f.Added, want)
		}
	}
	for _, c := range []struct{ text, want string }{
		{`[]`, "object"},
		{`{"model":{"type":"BPE"}}`, "vocab"},
		{`{"model":{"type":"BPE","vocab":{"a":-1}}}`, "has the id -1"},
		{`{"model":{"type":"BPE","vocab":{"a":99999999999}}}`, "has the id 99999999999"},
		{`{"model":{"type":"BPE","vocab":{"a":1,"b":1}}}`, "the id 1 is that of"},
		{`{"model":{"type":"BPE","vocab":{"a":0.5}}}`, `token "a"`},
		{`{"model":{"type":"BPE","vocab":{},"merges":["ab"]}}`, "merge 0"},
		{`{"model":{"type":"BPE","vocab":{},"merges":[["a"]]}}`, "1 parts"},
		{`{"added_tokens":[{"id":1}]}`, "added token 0"},
		{`{"added_tokens":[{"id":-5,"content":"x"}]}`, "has the id -5"},
	} {
		if _, err := tokenizer.ParseFast([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %q", c.text, err, c.want)
		}
	}
}

// TestPre tells pre-tokenizers apart by the expressions that the files of their families
// have, written out here as they are in those files.
func TestPre(t *testing.T) {
	split := func(expression string) string {
		return fmt.Sprintf(`{"type":"Split","pattern":{"Regex":%s},"behavior":"Isolated","invert":false}`, quote(expression))
	}
	const bytes = `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}`
	const gpt2 = `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`
	const digits = `{"type":"Digits","individual_digits":true}`
	sequence := func(steps ...string) string {
		return `{"type":"Sequence","pretokenizers":[` + strings.Join(steps, ",") + `]}`
	}
	llama := `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen := `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen35 := `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	gpt4o := `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	tekken := `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	for _, c := range []struct{ pre, want string }{
		{gpt2, "gpt-2"},
		{`{"type":"ByteLevel"}`, "gpt-2"},
		{sequence(digits, gpt2), "starcoder"},
		{sequence(split(llama), bytes), "dbrx"},
		{sequence(split(llama), bytes) + `,"model":{"ignore_merges":true}`, "llama-bpe"},
		{sequence(split(llama), bytes) + `,"model":{"ignore_merges":false}`, "dbrx"},
		{sequence(split(llama), bytes) + `,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{}}]}`, "llama-bpe"},
		{sequence(split(llama), bytes) + `,"post_processor":{"processors":[{"single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{}}]}]}`, "llama-bpe"},
		{sequence(split(llama), bytes) + `,"post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{}},{"SpecialToken":{"id":"</s>"}}]}`, "dbrx"},
		{sequence(split(strings.ReplaceAll(strings.ReplaceAll(qwen, `\r`, "\r"), `\n`, "\n")), bytes), "qwen2"},
		{sequence(strings.Replace(split(llama), `"behavior":"Isolated","invert":false`, `"behavior":"Removed","invert":true`, 1), bytes), "dbrx"},
		{sequence(split(qwen), bytes), "qwen2"},
		{sequence(split(qwen35), bytes), "qwen35"},
		{sequence(split(gpt4o), bytes), "gpt-4o"},
		{sequence(split(tekken), bytes), "tekken"},
		{sequence(split(llama+" "), bytes), ""},
		{sequence(split(llama)), ""},
		{sequence(split(llama), gpt2), ""},
		{sequence(strings.Replace(split(llama), "Isolated", "Removed", 1), bytes), ""},
		{sequence(strings.Replace(digits, "true", "false", 1), gpt2), ""},
		{strings.Replace(gpt2, `space":false`, `space":true`, 1), ""},
		{sequence(sequence(digits), gpt2), ""},
		{`{"type":"Whitespace"}`, ""},
		{`null`, ""},
	} {
		f, err := tokenizer.ParseFast([]byte(`{"pre_tokenizer":` + c.pre + `}`))
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.Pre()
		_, unknown := errors.AsType[*tokenizer.UnknownPreError](err)
		if got != c.want || unknown != (c.want == "") {
			t.Errorf("%s: %q, %v; want %q", c.pre, got, err, c.want)
		}
		if c.want != "" && !slices.Contains(tokenizer.PreNames(), c.want) {
			t.Errorf("%q is not among the names", c.want)
		}
	}
	for _, pre := range []string{`{}`, `{"type":"Sequence"}`, `{"type":"Split"}`, `{"type":"Sequence","pretokenizers":[1]}`, `{"type":"ByteLevel","use_regex":1}`} {
		f, err := tokenizer.ParseFast([]byte(`{"pre_tokenizer":` + pre + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if name, err := f.Pre(); err == nil {
			t.Errorf("%s is taken for %q", pre, name)
		}
	}
}

func quote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\r", `\r`, "\n", `\n`).Replace(text) + `"`
}

// FuzzSentencePiece guards that no bytes are taken for more pieces than they can hold:
// each takes two at least.
func FuzzSentencePiece(f *testing.F) {
	f.Add(encode([]tokenizer.Piece{{"a", 1, tokenizer.Normal}, {"b", 2, tokenizer.Byte}}))
	f.Add([]byte{0x0a, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		pieces, err := tokenizer.ParseSentencePiece(data)
		if err != nil {
			return
		}
		if 2*len(pieces) > len(data) {
			t.Fatalf("%d pieces in %d bytes", len(pieces), len(data))
		}
		// What parses writes and parses again to the same.
		again, err := tokenizer.ParseSentencePiece(encode(pieces))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(pieces) {
			t.Fatalf("%v again: %v, %v", pieces, again, err)
		}
	})
}

// FuzzFast guards that no text makes the parser or the finder of pre-tokenizers panic.
func FuzzFast(f *testing.F) {
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]},"added_tokens":[{"id":9,"content":"<x>"}],"pre_tokenizer":{"type":"ByteLevel"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		fast, err := tokenizer.ParseFast(data)
		if err != nil {
			return
		}
		if name, err := fast.Pre(); (name == "") == (err == nil) {
			t.Fatalf("%q and %v", name, err)
		}
	})
}
