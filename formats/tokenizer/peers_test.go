package tokenizer_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestEncodePeers compares with what the tokenizers library made of many texts, in the
// folder that testdata/gen/tokenizer_peers.py names.
func TestEncodePeers(t *testing.T) {
	folder := os.Getenv("TOKENIZER_PEERS")
	if folder == "" {
		t.Skip("run by testdata/gen/tokenizer_peers.py (make peers)")
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.expected"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(file, ".expected")
		t.Run(filepath.Base(name), func(t *testing.T) {
			var want struct {
				Fingerprint string
				Texts       []struct {
					Text, Decoded string
					Whole, Plain  []int
				}
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(data, &want); err != nil {
				t.Fatal(err)
			}
			if data, err = os.ReadFile(name + ".json"); err != nil {
				t.Fatal(err)
			}
			e := encoderOf(t, data)
			if hash, err := e.Fingerprint(); hash != want.Fingerprint || err != nil {
				t.Errorf("the fingerprint is %s, %v; want %s", hash, err, want.Fingerprint)
			}
			for _, w := range want.Texts {
				whole, err := e.Encode(w.Text, true)
				if err != nil {
					t.Fatal(err)
				}
				plain, err := e.Encode(w.Text, false)
				if err != nil || !slices.Equal(whole, w.Whole) || !slices.Equal(plain, w.Plain) {
					t.Errorf("%q is %q, %v; want %q", w.Text, pieces(e, whole), err, pieces(e, w.Whole))
				}
				if text, err := e.Decode(plain, true); text != w.Decoded || err != nil {
					t.Errorf("%q is decoded as %q, %v; want %q", w.Text, text, err, w.Decoded)
				}
			}
		})
	}
}
