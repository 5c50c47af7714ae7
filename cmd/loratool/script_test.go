package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/loratool/loratool/internal/cli"
)

var update = flag.Bool("update", false, "rewrite what the scripts compare with")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"loratool": func() { os.Exit(cli.Main()) }})
}

// TestScript runs the command lines in testdata/script. Every script finds the
// model and the adapter of testdata/demo as base and adapter in its folder, and
// the path of testdata/hostile in $HOSTILE.
func TestScript(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the scripts have slashes in paths, links, pipes and signals")
	}
	demo, err := filepath.Abs("../../testdata/demo")
	if err != nil {
		t.Fatal(err)
	}
	hostile := filepath.Join(filepath.Dir(demo), "hostile")
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Values[started{}] = new(background)
			e.Setenv("HOSTILE", hostile)
			e.Setenv("LORATOOL_CPU", os.Getenv("LORATOOL_CPU"))
			return os.CopyFS(e.WorkDir, os.DirFS(demo))
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"unheard": unheard,
			"crowd":   crowd,
			"corpus":  corpus,
			"start":   start,
			"partial": partial,
			"signal":  sendSignal,
			"finish":  finish,
			"weights": weights,
			"gguf":    writeGGUF,
			"halve":   halve,
			"bit":     bit,
			"json":    jsonValue,
			"scrub":   scrub,
			"planned": planned,
			"files":   files,
			"same":    same,
		},
	})
}
