// Package kernel holds the inner loops over rows of matrices: low-rank
// updates, small products, row and column scaling, sums of squares and the
// sums behind a merge report.
//
// Every function gives the same bytes on every CPU. Each comment fixes the
// order of the sums; each product that is then added is rounded on its own, as
// in T(a*b), because the Go compiler fuses a*b+c on some targets and an
// explicit conversion stops it; no function uses a fused multiply-add. A result
// that is NaN is stored as the one positive quiet NaN without payload: the sign
// and the payload that arithmetic gives differ between CPUs (Inf-Inf is
// 0xffc00000 on amd64 and 0x7fc00000 on arm64). A faster variant for one CPU
// must equal the loops here bit for bit.
//
// Matrices are row-major without gaps. Rows are independent, so a matrix may be
// cut into bands of rows anywhere. Arguments must not overlap. Lengths that do
// not fit the given sizes are a bug of the caller and panic; nothing read from
// a file may reach a call unchecked. Functions keep no state and may run
// concurrently on different memory.
package kernel

import "math"

// Float is the element type of a matrix.
type Float interface{ float32 | float64 }

// Panics for misuse. They are constants so that a stack trace names the fault
// without formatting anything.
const (
	badSize = "kernel: negative size"
	badX    = "kernel: length of x is not rows*cols"
	badL    = "kernel: length of l is not rows*rank"
	badR    = "kernel: length of r is not rank*cols"
	badDst  = "kernel: length of dst does not fit"
	badA    = "kernel: length of a is not m*k"
	badB    = "kernel: length of b is not k*n"
	badS    = "kernel: length of s does not fit"
	badW    = "kernel: length of w is not rows*cols"
	badY    = "kernel: length of y is not rows*cols"
)

// canonical returns v, or for any NaN the positive quiet NaN without payload.
func canonical[T Float](v T) T {
	if v != v {
		return T(math.Float64frombits(0x7ff8 << 48))
	}
	return v
}
