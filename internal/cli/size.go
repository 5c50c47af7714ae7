package cli

import (
	"fmt"
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

// maxSize is larger than any disk and leaves room for sums of sizes.
const maxSize = 1 << 60

// size is a flag value in bytes: "128MiB", "5GB", "4096".
type size int64

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return formatSize(int64(*s))
}

func (s *size) Type() string { return "SIZE" }

func (s *size) Set(text string) error {
	number, factor := text, 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			number, factor = rest, u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if v *= factor; err != nil || !(v >= 1 && v <= maxSize) {
		return fmt.Errorf("%q is not a size such as 128MiB or 5GB", text)
	}
	*s = size(v)
	return nil
}

// enough writes bytes as a size that is not smaller.
func enough(n int64) string {
	if n > 64<<20 {
		return fmt.Sprintf("%dMiB", (n+1<<20-1)>>20)
	}
	return fmt.Sprintf("%dKiB", (n+1<<10-1)>>10)
}

// count is a flag value of at least 1: "--jobs 4".
type count int

// maxCount is far above any machine's processors, and small enough to count to.
const maxCount = 1 << 14

func (c *count) String() string {
	if *c == 0 {
		return ""
	}
	return strconv.Itoa(int(*c))
}

func (c *count) Type() string { return "COUNT" }

func (c *count) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxCount {
		return fmt.Errorf("%q is not a number from 1 to %d", text, maxCount)
	}
	*c = count(n)
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
