package kernel

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
)

// level is a set of vector instructions.
type level int32

// The levels, each a superset of the one before. avx2 stands for AVX2 with FMA,
// F16C and POPCNT, avx512 for that and AVX-512 F, BW, VL and DQ.
const (
	generic level = iota
	avx2
	avx512
)

var levelNames = [...]string{generic: "generic", avx2: "avx2", avx512: "avx512"}

// Variable is the environment variable that names the level to use instead of the
// best one, for tests and for a CPU whose vectors are not to be trusted. A name that
// is none of [Levels] has no effect here, where nobody could be told; a program that
// should refuse it passes it to [Use].
const Variable = "LORATOOL_CPU"

// active is the level in use plus one, zero until it is first asked for. Looking into
// the environment that late lets the test cache of the go command see the variable.
var active atomic.Int32

func current() level {
	if l := active.Load(); l > 0 {
		return level(l - 1)
	}
	l := bestLevel()
	if i := slices.Index(levelNames[:], os.Getenv(Variable)); i >= 0 && level(i) < l {
		l = level(i)
	}
	active.CompareAndSwap(0, int32(l)+1)
	return level(active.Load() - 1)
}

// Level returns the name of the level in use: generic, avx2 or avx512. All
// levels give the same bytes, but for the products of [GemmKernel].
func Level() string { return levelNames[current()] }

// Levels returns the names of the levels that this build can run on this CPU,
// the slowest first. The first is always generic, which is portable Go.
func Levels() []string { return append([]string(nil), levelNames[:bestLevel()+1]...) }

// Use selects a level for the whole process. It is meant to be called once at
// the start, or by tests; calls that run meanwhile may change over.
func Use(name string) error {
	for i, known := range levelNames {
		if name != known {
			continue
		}
		if level(i) > bestLevel() {
			return fmt.Errorf("the kernels %q need a CPU or a build that this is not; there are %s", name, strings.Join(Levels(), ", "))
		}
		active.Store(int32(i) + 1)
		return nil
	}
	return fmt.Errorf("unknown kernels %q; there are %s", name, strings.Join(Levels(), ", "))
}
