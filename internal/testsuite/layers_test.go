package testsuite_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// rooms is the layer of every package (docs/architecture.md). A package may
// import packages of lower layers only; those of one layer never import each
// other.
var rooms = map[string]int{
	"formats/tensor":      0,
	"internal/fsatomic":   0,
	"internal/kernel":     0,
	"internal/saferead":   0,
	"internal/strictjson": 0,
	"internal/torchrand":  0,

	"formats/gguf":              1,
	"formats/hfrepo":            1,
	"formats/tokenizer":         1,
	"internal/linalg":           1,
	"formats/safetensors":       1,
	"internal/fsatomic/faultfs": 1,
	"internal/workfolder":       1,
	"quant/block":               1,

	"formats/arch":       1,
	"formats/checkpoint": 2,
	"quant/loftq":        2,
	"quant/encode":       3,
	"quant/mix":          2,
	"forward":            3,
	"formats/adapter":    4,
	"plan":               5,
	"convert":            6,
	"engine":             6,
	"diff":               6,
	"extract":            6,
	"merge":              6,
	"quant":              6,
	"inspect":            7,
	"report":             7,
	"verify":             7,
	"internal/cli":       8,
	"cmd/loratool":       9,

	// Tools around the product; nothing of it imports them.
	"internal/testmodel": 8,
	"internal/testsuite": 9,
	"internal/bench":     9,
	"internal/docgen":    9,

	"internal/linalg/linalgtest": 2,
}

// TestLayers reads the imports of every package and compares them with the
// table. A package without a room fails too: give it one on purpose.
func TestLayers(t *testing.T) {
	const module = "github.com/loratool/loratool/"
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "../../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		layer, ok := rooms[name]
		if !ok {
			t.Errorf("package %s has no room in the table", name)
			continue
		}
		seen++
		for _, imp := range p.Imports {
			dep, ours := strings.CutPrefix(imp, module)
			if below, ok := rooms[dep]; ours && (!ok || below >= layer) {
				t.Errorf("%s (layer %d) imports %s (layer %d)", name, layer, dep, below)
			}
		}
	}
	if seen < 15 {
		t.Errorf("only %d packages were checked", seen)
	}
}
