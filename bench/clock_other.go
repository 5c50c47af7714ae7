//go:build unix && !linux

package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// processCPU returns the CPU time of all threads of this process.
func processCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // RUSAGE_SELF is always valid
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// threadCPU stands for the CPU time of one thread, which has no portable clock.
func threadCPU() time.Duration { return processCPU() }
