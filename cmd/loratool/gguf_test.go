package main

import (
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/loratool/loratool/formats/gguf"
)

// writeGGUF FILE [KEY=TEXT | NAME:TYPE:SHAPE]... writes a GGUF file with keys that
// are texts and tensors of zeros. SHAPE is like 8x32. What stands in double quotes
// may have escapes.
func writeGGUF(ts *testscript.TestScript, _ bool, args []string) {
	var keys gguf.Metadata
	var specs []gguf.Spec
	for _, arg := range args[1:] {
		m := regexp.MustCompile(`^(.*):([a-z][a-zA-Z0-9_]*):([0-9x]*)$`).FindStringSubmatch(arg)
		if m == nil {
			key, text, _ := strings.Cut(arg, "=")
			keys.Set(unquote(ts, key), gguf.ValueOf(unquote(ts, text)))
			continue
		}
		kind, err := gguf.ParseType(m[2])
		ts.Check(err)
		spec := gguf.Spec{Name: unquote(ts, m[1]), Type: kind}
		for _, dim := range strings.Split(m[3], "x") {
			n, err := strconv.ParseInt(dim, 10, 64)
			ts.Check(err)
			spec.Shape = append(spec.Shape, n)
		}
		specs = append(specs, spec)
	}
	layout, err := gguf.NewLayout(&keys, specs, gguf.LayoutOptions{})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), layout.Header(), 0o666))
	ts.Check(os.Truncate(ts.MkAbs(args[0]), layout.Size()))
}
