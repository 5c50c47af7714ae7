package block_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestGGMLNoFusion guards that no product is fused with a sum on CPUs where Go does that,
// which would change bytes there: it looks at the code that the compiler makes of this
// package, and of the searches of package kernel, for arm64.
func TestGGMLNoFusion(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles for another CPU")
	}
	fused := regexp.MustCompile(`((?:ggml|search)\w*\.go:\d+)\)\s+(FN?M(ADD|SUB)S?)\s`)
	listing := func(folder string) []byte {
		cmd := exec.Command("go", "build", "-gcflags=-S", ".")
		cmd.Dir, cmd.Env = folder, append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	for _, folder := range []string{".", "../../internal/kernel"} {
		for _, match := range fused.FindAllSubmatch(listing(folder), -1) {
			t.Errorf("%s has %s", match[1], match[2])
		}
	}
	// What is looked for does occur where rounding is left out.
	canary := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":         "module canary\n",
		"ggml_canary.go": "package canary\n\nfunc Fused(x, y, z float32) float32 { return x*y + z }\n",
	} {
		if err := os.WriteFile(filepath.Join(canary, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !fused.Match(listing(canary)) {
		t.Error("the listing of a fused product shows none")
	}
}
