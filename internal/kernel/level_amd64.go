//go:build !noasm

package kernel

import "golang.org/x/sys/cpu"

// bestLevel asks for every extension that the assembly of a level may use, and
// package cpu for those that the operating system saves as well.
func bestLevel() level {
	x := &cpu.X86
	switch {
	case !x.HasAVX2 || !x.HasFMA || !x.HasF16C || !x.HasPOPCNT:
		return generic
	case !x.HasAVX512F || !x.HasAVX512BW || !x.HasAVX512VL || !x.HasAVX512DQ:
		return avx2
	}
	return avx512
}
