package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/loratool/loratool/internal/kernel"
)

// describeMachine names what the figures were measured on.
func describeMachine() string {
	return fmt.Sprintf("%s, %d CPUs, %s/%s, %s, kernels %s, load before %s\n",
		cpuName(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), kernel.Level(), loadAverage())
}

// loadAverage returns how many programs wanted a CPU in the last minute, as Linux has it: ratios
// by wall time mean little above the number of CPUs.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(data), " ")
	return first
}

// cpuName returns the name of the CPU as Linux has it.
func cpuName() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	defer f.Close()
	var name, family, model string
	for lines := bufio.NewScanner(f); lines.Scan() && lines.Text() != ""; {
		key, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "model name":
			name = value
		case "cpu family":
			family = value
		case "model":
			model = value
		}
	}
	return fmt.Sprintf("%s (family %s, model %s)", name, family, model)
}
