package verify

import (
	"encoding/json"
	"testing"
)

// FuzzTokenizerJSON compares the count with that of a decoder that keeps everything.
// What is accepted here must be JSON; what is refused may be odd in other ways too.
func FuzzTokenizerJSON(f *testing.F) {
	for _, text := range []string{
		`{"model": {"vocab": {"a": 0, "b": 41}}, "added_tokens": [{"id": 43, "content": "x"}]}`,
		`{"added_tokens": [], "model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", 0]]}}`,
		`{"model": null, "added_tokens": {"id": 9}}`, `[]`, `{"model": {"vocab": {"a": {}}}}`, `{"model": {"vocab": [[[], {"a": [1]}]]}} `,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := countTokenizerJSON(data)
		if err != nil {
			return
		}
		var whole map[string]json.RawMessage
		if json.Unmarshal(data, &whole) != nil { // another kind of value
			if !json.Valid(data) || got != 0 {
				t.Fatalf("accepted with %d ids", got)
			}
			return
		}
		if want := slowCount(whole); got != want {
			t.Errorf("%d ids, want %d in %q", got, want, data)
		}
	})
}

// slowCount is the twin: whatever has another type than it should counts for nothing.
func slowCount(whole map[string]json.RawMessage) int64 {
	var ids int64
	var model map[string]json.RawMessage
	if json.Unmarshal(whole["model"], &model) == nil {
		var byToken map[string]int64
		var list []json.RawMessage
		switch {
		case json.Unmarshal(model["vocab"], &byToken) == nil:
			for _, id := range byToken {
				ids = max(ids, id+1)
			}
		case json.Unmarshal(model["vocab"], &list) == nil:
			ids = int64(len(list))
		}
	}
	var added []json.RawMessage
	if json.Unmarshal(whole["added_tokens"], &added) == nil {
		for _, item := range added {
			var token map[string]json.RawMessage
			var id int64
			if json.Unmarshal(item, &token) == nil && json.Unmarshal(token["id"], &id) == nil {
				ids = max(ids, id+1)
			}
		}
	}
	return ids
}

// FuzzSentencePieces guards against panics and counts that the bytes can't hold: a
// piece takes two bytes at least.
func FuzzSentencePieces(f *testing.F) {
	f.Add([]byte("\x0a\x05\x0a\x03abc\x12\x02\x08\x01"))
	f.Add([]byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Add([]byte("\x08\x01\x11aaaaaaaa\x15bbbb\x0a\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := countSentencePieces(data); err == nil && n > int64(len(data)/2) {
			t.Errorf("%d pieces in %d bytes", n, len(data))
		}
	})
}
