package strictjson_test

import (
	"testing"

	"github.com/loratool/loratool/internal/strictjson"
)

// TestParsePythonObject guards that only the lenient form takes Python's
// numbers, and that they come out as they went in.
func TestParsePythonObject(t *testing.T) {
	const text = `{"a": [0.0, Infinity, -Infinity, NaN], "b": -1}`
	o, err := strictjson.ParsePythonObject([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(o.Encode("")); got != text {
		t.Errorf("encoded as %s", got)
	}
	if _, err := strictjson.ParseObject([]byte(text)); err == nil {
		t.Error("the strict form takes Infinity")
	}
	for _, bad := range []string{`{"a": Inf}`, `{"a": nan}`, `{"a": +Infinity}`, `{"a": --Infinity}`, `{"a": Infinity1}`, `{"a": I}`, `{"a": N}`} {
		if _, err := strictjson.ParsePythonObject([]byte(bad)); err == nil {
			t.Errorf("%s passes", bad)
		}
	}
}
