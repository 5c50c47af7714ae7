//go:build !unix

package linalg_test

// cpuSeconds is not known here; benchmarks then report wall time only.
func cpuSeconds() float64 { return 0 }
