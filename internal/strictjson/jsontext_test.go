//go:build goexperiment.jsonv2

package strictjson_test

import (
	"bytes"
	"encoding/json/jsontext"
	"io"
	"strings"
	"testing"
)

// FuzzScannerAgainstJSONText compares every verdict with that of the standard
// library's experimental reader, which has the same rules but for depth:
//
//	GOEXPERIMENT=jsonv2 go test -fuzz FuzzScannerAgainstJSONText
func FuzzScannerAgainstJSONText(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := scan(string(data))
		want := jsontextVerdict(data)
		if err != nil && strings.Contains(err.Error(), "nesting deeper") {
			return
		}
		if (err == nil) != (want == nil) {
			t.Errorf("%q: %v, jsontext says %v", data, err, want)
		}
	})
}

// jsontextVerdict reads one value and asks that nothing follows.
func jsontextVerdict(data []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(data))
	if err := d.SkipValue(); err != nil {
		return err
	}
	if _, err := d.ReadToken(); err != io.EOF {
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
	return nil
}
