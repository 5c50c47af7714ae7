package main

import (
	"fmt"
	"strconv"
	"strings"
)

// size is a flag value in bytes, such as 8GiB or 60GB.
type size int64

var units = []struct {
	suffix string
	bytes  float64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"GB", 1e9}, {"MB", 1e6}}

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return gib(int64(*s))
}

func (s *size) Type() string { return "size" }

func (s *size) Set(text string) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(number, 64)
		if err == nil && v > 0 && v < 1e6 {
			*s = size(v * u.bytes)
			return nil
		}
	}
	return fmt.Errorf("%q is not a size such as 8GiB or 60GB", text)
}

func gib(n int64) string { return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30)) }

func mib(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }
