package strictjson_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/strictjson"
)

var seeds = []string{
	`{"a":[1,-2.5e+3,"x\ny\u00e9\ud83d\ude00"],"b":{},"c":[],"d":true,"e":false,"f":null}`,
	`{"a":0,"\u0061":0}`, `[NaN]`, "\uFEFF{}", "\"\xed\xa0\x80\"", `"\ud800"`, `[0,]`, `01`, `1e`, `{"a":1}{}`,
	`{"k0":0,"k1":0,"k2":0,"k3":0,"k4":0,"k5":0,"k6":0,"k7":0,"k8":0,"k9":0,"k0":0}`,
	strings.Repeat("[", 129) + strings.Repeat("]", 129),
}

// FuzzScanner checks that nothing panics, that what is accepted is JSON for
// the standard library too and survives re-encoding, and that what is refused
// either is no JSON or breaks one of the rules the standard library lacks.
func FuzzScanner(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	configs, err := filepath.Glob("../../testdata/hostile/*/*/*.json")
	if err != nil || len(configs) == 0 {
		f.Fatalf("no configurations: %v", err)
	}
	for _, path := range configs {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, scanErr := scan(string(data))
		v, err := strictjson.Parse(data)
		if (err == nil) != (scanErr == nil) {
			t.Fatalf("scanner says %v, parser %v", scanErr, err)
		}
		if err != nil {
			checkRefusal(t, data, err)
			return
		}
		if !json.Valid(data) {
			t.Fatal("accepted, but not JSON for encoding/json")
		}
		for _, indent := range []string{"", "  "} {
			again, err := strictjson.Parse(v.Encode(indent))
			if err != nil {
				t.Fatalf("encoded text %s: %v", v.Encode(indent), err)
			}
			if !again.Equal(v) {
				t.Fatalf("%s reads back as %s", v.Encode(""), again.Encode(""))
			}
		}
	})
}

func checkRefusal(t *testing.T, data []byte, err error) {
	t.Helper()
	if text := err.Error(); strings.ContainsAny(text, "\n\r\x1b\u202e") || !utf8.ValidString(text) {
		t.Errorf("error %q is not one printable line", err)
	}
	if !json.Valid(data) {
		return
	}
	for _, rule := range []string{"duplicate key", "invalid UTF-8", "lone surrogate", "nesting deeper"} {
		if strings.Contains(err.Error(), rule) {
			return
		}
	}
	t.Errorf("refused for no known reason: %v", err)
}
