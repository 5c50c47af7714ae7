package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are the suffixes of sizes: decimal and binary.
var units = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"B", 1},
}

// size is a flag value in bytes: "128MiB", "5GB", "4096".
type size int64

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return formatSize(int64(*s))
}

func (s *size) Type() string { return "size" }

func (s *size) Set(text string) error {
	number, factor := text, 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			number, factor = rest, u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || math.IsNaN(v) || v <= 0 || v*factor >= math.MaxInt64 {
		return fmt.Errorf("%q is not a size such as 128MiB or 5GB", text)
	}
	*s = size(v * factor)
	return nil
}

// formatSize writes bytes for people, in binary units, with three digits.
func formatSize(n int64) string {
	switch {
	case n >= 1<<40:
		return fmt.Sprintf("%.2fTiB", float64(n)/(1<<40))
	case n >= 1<<30:
		return fmt.Sprintf("%.2fGiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1fMiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1fKiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%dB", n)
}
