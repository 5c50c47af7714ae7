//go:build unix

package main

import (
	"io/fs"
	"os"
	"runtime"
	"syscall"
)

// resources returns the peak memory and the bytes read from disk of a process
// that has ended.
func resources(p *os.ProcessState) (peak, fromDisk int64) {
	usage, ok := p.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, 0
	}
	unit := int64(1 << 10)
	if runtime.GOOS == "darwin" {
		unit = 1
	}
	return int64(usage.Maxrss) * unit, int64(usage.Inblock) * 512
}

// diskUse returns the bytes that a file takes on the disk.
func diskUse(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return info.Size()
}
