package main

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// TestFindOpenBLAS guards the names a library may have and what is said if there is
// none: a table without references must not pass for a whole one.
func TestFindOpenBLAS(t *testing.T) {
	for name, is := range map[string]bool{
		"lib/libopenblas.so": true, "libopenblas.so.0": true, "a/b/libscipy_openblas.so": true, "libopenblas.0.dylib": true,
		"libopenblas.a": false, "libopenblas.so.txt": false, "libblas.so": false, "cblas.h": false,
	} {
		dir := t.TempDir()
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		found, err := findOpenBLAS(dir)
		if is && found != at || is != (err == nil) {
			t.Errorf("%s: found %q, error %v", name, found, err)
		}
	}
	var out strings.Builder
	empty := t.TempDir()
	for _, path := range []string{empty, filepath.Join(empty, "nowhere")} {
		err := run(&out, options{figures: []string{"sketch"}, size: 256, rounds: 1, svdRounds: 1, openblas: path})
		if !errors.Is(err, errNoOpenBLAS) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, want one line that says what to do", err)
		}
	}
	notOne := filepath.Join(empty, "libopenblas.so")
	if err := os.WriteFile(notOne, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := blasLoader{path: empty}
	if _, err := l.open(""); err == nil || !strings.Contains(err.Error(), notOne) {
		t.Errorf("error %v, want one that names the file", err)
	}
}

// TestProducts guards that all sides of a comparison compute the same product. Each
// sum of k terms is right to k*2^-24 of the sum of their magnitudes.
func TestProducts(t *testing.T) {
	lib := library(t)
	defer use(kernel.Level())
	f := newFactors(70, 90, 130)
	want := make([]float64, f.m*f.n)
	limit := make([]float64, f.m*f.n)
	for i := range f.m {
		for j := range f.n {
			for k := range f.k {
				product := float64(f.a[i*f.k+k]) * float64(f.b[k*f.n+j])
				want[i*f.n+j] += product
				limit[i*f.n+j] += float64(f.k) * 0x1p-24 * math.Abs(product)
			}
		}
	}
	sides := map[string]contender{"openblas": f.openBLAS(lib, 1), "openblas, 2 threads": f.openBLAS(lib, 2), "gonum": f.gonum(1)}
	for _, level := range kernel.Levels() {
		sides[level] = f.ours(level, 1)
	}
	for name, side := range sides {
		for i := range f.c {
			f.c[i] = float32(math.NaN())
		}
		side.run()
		for i, got := range f.c {
			if !(math.Abs(float64(got)-want[i]) <= limit[i]) {
				t.Fatalf("%s: element %d is %v, want %v", name, i, got, want[i])
			}
		}
	}
}

// TestCores guards that a kind of CPU is what it was asked for, beside the native one.
func TestCores(t *testing.T) {
	library(t)
	if len(kernel.Levels()) < 2 {
		t.Skip("no AVX2")
	}
	l := blasLoader{path: os.Getenv("OPENBLAS")}
	for _, core := range []string{"", "Haswell"} {
		lib, err := l.open(core)
		if err != nil {
			t.Fatal(err)
		}
		if core != "" && lib.core != core {
			t.Errorf("%q has the kernels of %q", core, lib.core)
		}
	}
	if l.loaded[""].sgemm == l.loaded["Haswell"].sgemm {
		t.Error("both are one library")
	}
	if got, set := os.LookupEnv("OPENBLAS_CORETYPE"); set && got != "" {
		t.Errorf("OPENBLAS_CORETYPE is left at %q", got)
	}
}

// TestDecompose guards that sgesdd finds what was planted, and that the check would
// notice another value.
func TestDecompose(t *testing.T) {
	full := lapack{lib: library(t)}
	for _, kind := range []string{"P", "Q", "R"} {
		s := newSpectrum(kind, 256)
		full.contender(s).run()
		if err := errors.Join(full.err, full.checkPlanted(s)); err != nil {
			t.Error(err)
		}
		full.values[17] *= 1.001
		if full.checkPlanted(s) == nil {
			t.Errorf("%s: a wrong value passes", kind)
		}
	}
}

// TestNoTorch guards that a Python without torch is named.
func TestNoTorch(t *testing.T) {
	tensor := newTensor(256, 8)
	for _, python := range []string{"", "/nowhere/python", "false"} {
		if _, err := startTorch(python, tensor); err == nil || !strings.Contains(err.Error(), "torch") {
			t.Errorf("%q: error %v", python, err)
		}
	}
}

// TestTorch guards that torch merges the same numbers as we do, and that the check
// would notice others.
func TestTorch(t *testing.T) {
	python := os.Getenv("PYTHON")
	if python == "" {
		t.Skip("PYTHON is not set")
	}
	tensor := newTensor(256, 8)
	peer, err := startTorch(python, tensor)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.close()
	if err := peer.checkAgainst(tensor); err != nil {
		t.Error(err)
	}
	for _, form := range []string{"bf16", "peft"} {
		c, err := peer.contender(form, 1).sample(3)
		if err != nil || c.wall <= 0 || c.cpu <= 0 {
			t.Errorf("%s took %+v, error %v", form, c, err)
		}
	}
	tensor.left[5] += 8 // changes all of row 0
	if peer.checkAgainst(tensor) == nil {
		t.Error("another factor passes")
	}
}
