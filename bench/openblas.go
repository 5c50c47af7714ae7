package main

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

// The functions of cblas.h and lapacke.h that are used, in the build with 32-bit
// integers; enumerations are ints.
typedef void (*sgemm_t)(int order, int transA, int transB, int m, int n, int k, float alpha,
	const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
typedef int (*sgesdd_t)(int layout, char job, int m, int n, float *a, int lda, float *s,
	float *u, int ldu, float *vt, int ldvt);
typedef void (*set_threads_t)(int);
typedef char *(*text_t)(void);

static void call_sgemm(void *f, int m, int n, int k, const float *a, const float *b, float *c) {
	((sgemm_t)f)(101, 111, 111, m, n, k, 1, a, k, b, n, 0, c, n);
}

static int call_sgesdd(void *f, int m, int n, float *a, float *s, float *u, float *vt) {
	int k = m < n ? m : n;
	return ((sgesdd_t)f)(102, 'S', m, n, a, m, s, u, m, vt, k);
}

static void call_set_threads(void *f, int n) { ((set_threads_t)f)(n); }
static char *call_text(void *f) { return ((text_t)f)(); }
static void call_memcpy(void *dst, const void *src, size_t n) { memcpy(dst, src, n); }
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unsafe"
)

// openBLAS is one loaded copy of the library, for one kind of CPU.
type openBLAS struct {
	sgemm, sgesdd, setThreads unsafe.Pointer
	core, config              string
}

// product computes C = A*B, A m x k, B k x n, row by row without gaps.
func (o *openBLAS) product(m, n, k int, a, b, c []float32, threads int) {
	C.call_set_threads(o.setThreads, C.int(threads))
	C.call_sgemm(o.sgemm, C.int(m), C.int(n), C.int(k), pointer(a), pointer(b), pointer(c))
}

// decompose returns all singular values of A, n x n, which it destroys, and computes
// all vectors. Rows are passed as columns: the values are the same, and LAPACK need
// not turn the matrix.
func (o *openBLAS) decompose(n int, a []float32) ([]float32, error) {
	s, u, vt := make([]float32, n), make([]float32, n*n), make([]float32, n*n)
	C.call_set_threads(o.setThreads, 1)
	if info := C.call_sgesdd(o.sgesdd, C.int(n), C.int(n), pointer(a), pointer(s), pointer(u), pointer(vt)); info != 0 {
		return nil, fmt.Errorf("LAPACKE_sgesdd returned %d", int(info))
	}
	return s, nil
}

func pointer(x []float32) *C.float { return (*C.float)(unsafe.Pointer(unsafe.SliceData(x))) }

// copyByC copies with the memory copy of the C library.
func copyByC(dst, src []byte) {
	n := min(len(dst), len(src))
	C.call_memcpy(unsafe.Pointer(unsafe.SliceData(dst)), unsafe.Pointer(unsafe.SliceData(src)), C.size_t(n))
}

// blasLoader loads the library when a figure first asks for it.
type blasLoader struct {
	path   string
	loaded map[string]*openBLAS
}

// open returns the library as it is for this CPU (core ""), or for another kind of
// CPU, named as OpenBLAS names it. The kind is read once, when a library is loaded, so
// every kind is a copy of the file: two in one process can be compared in turns.
func (l *blasLoader) open(core string) (*openBLAS, error) {
	if lib := l.loaded[core]; lib != nil {
		return lib, nil
	}
	path, err := findOpenBLAS(l.path)
	if err != nil {
		return nil, err
	}
	lib, err := loadCopy(path, core)
	if err != nil {
		return nil, fmt.Errorf("loading %s: %w", path, err)
	}
	if l.loaded == nil {
		l.loaded = map[string]*openBLAS{}
	}
	l.loaded[core] = lib
	return lib, nil
}

// describe names the libraries that were used.
func (l *blasLoader) describe(w io.Writer) {
	for core, lib := range l.loaded {
		asked := ""
		if core != "" {
			asked = fmt.Sprintf(" (OPENBLAS_CORETYPE=%s)", core)
		}
		fmt.Fprintf(w, "\nOpenBLAS%s: %s, kernels %s", asked, strings.TrimSpace(lib.config), lib.core)
	}
	if len(l.loaded) > 0 {
		fmt.Fprintln(w)
	}
}

// errNoOpenBLAS says what to do in one line.
var errNoOpenBLAS = errors.New("no OpenBLAS: pip install --target DIR scipy-openblas32, then --openblas DIR (make bench-c OPENBLAS=DIR)")

// findOpenBLAS returns the library at or below path, or in the system's folders if
// path is empty.
func findOpenBLAS(path string) (string, error) {
	folders := []string{path}
	if path == "" {
		folders = []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/opt/openblas/lib"}
	} else if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w; %w", err, errNoOpenBLAS)
	}
	library := regexp.MustCompile(`^lib(scipy_)?openblas[^/]*\.(so|dylib)(\.\d+)*$`)
	found := ""
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(at string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && library.MatchString(e.Name()) {
				found = at
				return fs.SkipAll
			}
			return nil // what cannot be read is not the library
		})
		if err == nil && found != "" {
			return found, nil
		}
	}
	return "", errNoOpenBLAS
}

// loadCopy loads a copy of the file under a name of its own, for a kind of CPU.
func loadCopy(path, core string) (*openBLAS, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "openblas-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // a loaded library lives on without its name
	name := filepath.Join(dir, filepath.Base(path))
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return nil, err
	}
	const variable = "OPENBLAS_CORETYPE"
	if core != "" {
		before := os.Getenv(variable)
		defer os.Setenv(variable, before)
		if err := os.Setenv(variable, core); err != nil {
			return nil, err
		}
	}
	return load(name)
}

// load opens the library and finds its functions, with or without SciPy's prefix.
func load(name string) (*openBLAS, error) {
	cName := C.CString(name)
	defer C.free(unsafe.Pointer(cName))
	handle := C.dlopen(cName, C.RTLD_NOW|C.RTLD_LOCAL)
	if handle == nil {
		return nil, errors.New(C.GoString(C.dlerror()))
	}
	var missing error
	symbol := func(name string) unsafe.Pointer {
		for _, prefix := range []string{"", "scipy_"} {
			cSymbol := C.CString(prefix + name)
			f := C.dlsym(handle, cSymbol)
			C.free(unsafe.Pointer(cSymbol))
			if f != nil {
				return f
			}
		}
		missing = fmt.Errorf("function %s is not in it", name)
		return nil
	}
	lib := &openBLAS{
		sgemm:      symbol("cblas_sgemm"),
		sgesdd:     symbol("LAPACKE_sgesdd"),
		setThreads: symbol("openblas_set_num_threads"),
	}
	core, config := symbol("openblas_get_corename"), symbol("openblas_get_config")
	if missing != nil {
		return nil, missing
	}
	lib.core, lib.config = C.GoString(C.call_text(core)), C.GoString(C.call_text(config))
	return lib, nil
}
