package tokenizer_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/tokenizer"
)

var goldenFolder = filepath.Join("..", "..", "testdata", "golden", "tokenizer")

// goldenCase is a case of testdata/gen/tokenizer_golden.py.
type goldenCase struct {
	Name, Base, Lines, Whole, Decoded string
	Parts                             map[string]json.RawMessage
	First                             []int
}

func goldenCases(t testing.TB) []goldenCase {
	t.Helper()
	var all []goldenCase
	if err := json.Unmarshal(golden(t, "cases"), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldenFolder, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// file is the tokenizer.json of a case: its base, with its own parts.
func (c goldenCase) file(t testing.TB) []byte {
	t.Helper()
	root := make(map[string]json.RawMessage)
	if err := json.Unmarshal(golden(t, c.Base), &root); err != nil {
		t.Fatal(err)
	}
	for key, part := range c.Parts {
		if key == "model" {
			model := make(map[string]json.RawMessage)
			if err := errors.Join(json.Unmarshal(root[key], &model), json.Unmarshal(part, &model)); err != nil {
				t.Fatal(err)
			}
			part, _ = json.Marshal(model)
		}
		root[key] = part
	}
	data, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func encoderOf(t testing.TB, data []byte) *tokenizer.Encoder {
	t.Helper()
	fast, err := tokenizer.ParseFast(data)
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := tokenizer.NewEncoder(fast)
	if err != nil {
		t.Fatal(err)
	}
	return encoder
}

// digest is what the golden data has of ids, as Python writes a list, and of texts.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:8]
}

func digestIDs(ids []int) string { return digest(strings.ReplaceAll(fmt.Sprint(ids), " ", ", ")) }

// TestEncodeGolden compares with the tokenizers library: every kind of step, line by line.
func TestEncodeGolden(t *testing.T) {
	for _, c := range goldenCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			e := encoderOf(t, c.file(t))
			want := strings.Fields(c.Lines)
			lines := strings.SplitAfter(tokenizer.Sample, "\n")
			if len(lines) != len(want) {
				t.Fatalf("the text has %d lines, the golden data %d", len(lines), len(want))
			}
			for i, line := range lines {
				ids, err := e.Encode(line, false)
				if err != nil {
					t.Fatal(err)
				}
				if i == 1 && !slices.Equal(ids, c.First) {
					t.Errorf("%q is %v, want %v", line, ids, c.First)
				}
				if digestIDs(ids) != want[i] {
					t.Errorf("%q is %q: not what the library has", line, pieces(e, ids))
				}
			}
			whole, err := e.Encode(tokenizer.Sample, true)
			if err != nil || digestIDs(whole) != c.Whole {
				t.Errorf("the whole text differs, %v", err)
			}
			if text, err := e.Decode(whole, false); err != nil || digest(text) != c.Decoded {
				t.Errorf("decoded it is %q, %v", text, err)
			}
		})
	}
}

func pieces(e *tokenizer.Encoder, ids []int) []string {
	all := make([]string, len(ids))
	for i, id := range ids {
		all[i], _ = e.Token(id)
	}
	return all
}

// TestEncodeUnsupported plants what is not known: an error names it, nothing is passed over.
func TestEncodeUnsupported(t *testing.T) {
	split := func(regex string) string {
		data, _ := json.Marshal(map[string]any{"type": "Split", "pattern": map[string]any{"Regex": regex}, "behavior": "Isolated", "invert": false})
		return string(data)
	}
	for _, c := range []struct{ part, value, want string }{
		{"normalizer", `{"type":"Precompiled"}`, `normalizer: "Precompiled" is not known`},
		{"normalizer", `{"type":"Sequence","normalizers":[{"type":"New"}]}`, `normalizer: "New" is not known`},
		{"normalizer", `{"type":"Replace","pattern":{"Glob":"a"},"content":"b"}`, "neither a text nor a regular expression"},
		{"pre_tokenizer", `{"type":"UnicodeScripts"}`, `"UnicodeScripts" is not known`},
		{"pre_tokenizer", `{"type":"Punctuation","behavior":"Other"}`, `the behavior "Other"`},
		{"pre_tokenizer", `{"type":"Metaspace","replacement":"__"}`, "want one character"},
		{"pre_tokenizer", `{"type":"Metaspace","replacement":"_","prepend_scheme":"last"}`, `the prepend_scheme "last"`},
		{"pre_tokenizer", `{"type":"FixedLength","length":0}`, "pieces of 0"},
		{"pre_tokenizer", split(`(a)\1`), `\1 is not known`},
		{"pre_tokenizer", split(`(?<x>a)`), "the group (?"},
		{"pre_tokenizer", split(`(?i)a`), "the group (?"},
		{"pre_tokenizer", split(`(a`), "nothing closes"},
		{"pre_tokenizer", split(`a)`), "nothing opens"},
		{"pre_tokenizer", split(`[a`), "nothing closes"},
		{"pre_tokenizer", split(`[]a]`), "the set"},
		{"pre_tokenizer", split(`[[:alpha:]]`), "the set"},
		{"pre_tokenizer", split(`[a&&]`), "cut with nothing"},
		{"pre_tokenizer", split(`[z-a]`), "a range"},
		{"pre_tokenizer", split(`[a-\d]`), "a range"},
		{"pre_tokenizer", split(`\p{C}`), `\p{C} is not known`},
		{"pre_tokenizer", split(`\p{Klingon}`), `\p{Klingon} is not known`},
		{"pre_tokenizer", split(`\pL`), `\p without {`},
		{"pre_tokenizer", split(`(?i:\p{Lu})`), "without case"},
		{"pre_tokenizer", split(`(?i:ss)`), "ss without case"},
		{"pre_tokenizer", split(`(?i:oﬀ)`), "without case"},
		{"pre_tokenizer", split(`\R`), `\R is not known`},
		{"pre_tokenizer", split(`\x{110000}`), "is no character"},
		{"pre_tokenizer", split(`a{2}?`), "{2}? is not known"},
		{"pre_tokenizer", split(`a{100000}`), "100000 repetitions"},
		{"pre_tokenizer", split(`*a`), "repeats nothing"},
		{"pre_tokenizer", split(strings.Repeat("(", 1000)), "groups in groups"},
		{"pre_tokenizer", split(strings.Repeat("[", 1000)), "sets in sets"},
		{"pre_tokenizer", split("a" + strings.Repeat("*", 1000)), "quantifiers"},
		{"pre_tokenizer", strings.Repeat(`{"type":"Sequence","pretokenizers":[`, 30) + strings.Repeat(`]}`, 30), "sequences in sequences"},
		{"post_processor", `{"type":"New"}`, `post_processor: "New"`},
		{"post_processor", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<x>"}}],"special_tokens":{}}`, "<x>"},
		{"post_processor", `{"type":"TemplateProcessing","single":[],"special_tokens":{}}`, "0 times"},
		{"post_processor", `{"type":"BertProcessing","sep":["a"],"cls":["b",1]}`, "want 2"},
		{"model", `{"dropout":0.1}`, "depends on chance"},
		{"model", `{"type":"New"}`, `model: "New" is not known`},
		{"model", `{"merges":["zz yy"]}`, "not in the vocabulary"},
		{"model", `{"continuing_subword_prefix":"##"}`, `does not begin with "##"`},
		{"added_tokens", `[{"id":7,"content":"a"}]`, `"a" has the id 7`},
		{"added_tokens", `[{"id":7,"content":"new"}]`, "the id 7 is that of"},
	} {
		file := goldenCase{Base: "bytes", Parts: map[string]json.RawMessage{c.part: json.RawMessage(c.value)}}.file(t)
		fast, err := tokenizer.ParseFast(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tokenizer.NewEncoder(fast); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.80s: error %v, want one with %q", c.part, c.value, err, c.want)
		}
	}
}

// TestEncodeRefusesText has texts that can't be encoded as the library does.
func TestEncodeRefusesText(t *testing.T) {
	slow := `{"type":"Split","pattern":{"Regex":"(?:a|aa)+[bc]e"},"behavior":"Isolated","invert":false}`
	for _, c := range []struct {
		file       []byte
		text, want string
	}{
		{golden(t, "bytes"), "a\xff", "UTF-8"},
		{golden(t, "words"), "", ""},
		{goldenCase{Base: "words", Parts: map[string]json.RawMessage{"model": json.RawMessage(`{"unk_token":"none"}`)}}.file(t), "neverseen", "is unknown"},
		{goldenCase{Base: "wordpiece", Parts: map[string]json.RawMessage{"model": json.RawMessage(`{"unk_token":"none"}`)}}.file(t), "\u4e00", "is unknown"},
		{goldenCase{Base: "unigram", Parts: map[string]json.RawMessage{"model": json.RawMessage(`{"unk_id":null}`)}}.file(t), "\u4e00", "no unknown token"},
		{goldenCase{Base: "plain", Parts: map[string]json.RawMessage{"model": json.RawMessage(`{"unk_token":"none"}`)}}.file(t), "\u4e00", "is unknown"},
		{goldenCase{Base: "bytes", Parts: map[string]json.RawMessage{"pre_tokenizer": json.RawMessage(slow)}}.file(t), strings.Repeat("a", 60) + "cbd", "regular expression"},
	} {
		if testing.Short() && c.want == "regular expression" {
			continue
		}
		ids, err := encoderOf(t, c.file).Encode(c.text, false)
		if c.want == "" {
			if err != nil || len(ids) != 0 {
				t.Errorf("%q: %v, %v", c.text, ids, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, error %v, want one with %q", c.text, ids, err, c.want)
		}
	}
}

// TestEncodeReadsEveryRow guards the golden data: no case is another one by mistake.
func TestEncodeReadsEveryRow(t *testing.T) {
	seen := make(map[string]string)
	for _, c := range goldenCases(t) {
		data, _ := json.Marshal(c.Parts)
		key := c.Base + string(data)
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s are the same", c.Name, other)
		}
		seen[key] = c.Name
	}
	if bases := slices.Sorted(maps.Values(seen)); len(bases) < 60 {
		t.Errorf("%d cases", len(bases))
	}
}

// FuzzEncode: what tokens over bytes are made of comes back from them.
func FuzzEncode(f *testing.F) {
	for line := range strings.Lines(tokenizer.Sample) {
		f.Add(line)
	}
	var encoders []*tokenizer.Encoder
	for _, c := range goldenCases(f) {
		if c.Base == "bytes" && c.Parts["decoder"] != nil && c.Parts["added_tokens"] == nil {
			encoders = append(encoders, encoderOf(f, c.file(f)))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range encoders {
			ids, err := e.Encode(text, false)
			if err != nil {
				return
			}
			if got, err := e.Decode(ids, true); err != nil || got != text {
				t.Errorf("%q came back as %q, %v", text, got, err)
			}
		}
	})
}
