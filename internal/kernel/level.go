package kernel

import (
	"fmt"
	"strings"
	"sync/atomic"
)

// level is a set of vector instructions.
type level int32

// The levels, each a superset of the one before. avx2 stands for AVX2 with FMA
// and F16C, avx512 for that and AVX-512 F, BW, VL and DQ.
const (
	generic level = iota
	avx2
	avx512
)

var levelNames = [...]string{generic: "generic", avx2: "avx2", avx512: "avx512"}

// active is the level in use, the best one of this CPU until [Use] is called.
var active = func() *atomic.Int32 {
	a := new(atomic.Int32)
	a.Store(int32(bestLevel()))
	return a
}()

func current() level { return level(active.Load()) }

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
		active.Store(int32(i))
		return nil
	}
	return fmt.Errorf("unknown kernels %q; there are %s", name, strings.Join(Levels(), ", "))
}
