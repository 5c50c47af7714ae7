package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// printTable prints the runs of all variants as Markdown. Ratios are to the
// first variant in the same round.
func printTable(w io.Writer, variants []variant) {
	fmt.Fprintln(w, "| variant | wall s, median (range) | ratio to copy, median (range) | CPU s | peak RSS | read from disk |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- |")
	reference := variants[0].runs
	for i := range variants {
		v := &variants[i]
		ratio := func(i int) float64 { return v.runs[i].wall.Seconds() / reference[i].wall.Seconds() }
		fmt.Fprintf(w, "| %s | %s | %s | %.1f | %s | %s |\n", v.name,
			spread(v, "%.1f", func(i int) float64 { return v.runs[i].wall.Seconds() }),
			spread(v, "%.2f", ratio),
			median(v, func(i int) float64 { return v.runs[i].cpu.Seconds() }),
			mib(v.peak()),
			gib(int64(median(v, func(i int) float64 { return float64(v.runs[i].fromDisk) }))))
	}
}

func (v *variant) peak() int64 {
	var peak int64
	for _, m := range v.runs {
		peak = max(peak, m.peak)
	}
	return peak
}

// sorted returns the value of every run, in rising order.
func sorted(v *variant, value func(i int) float64) []float64 {
	values := make([]float64, len(v.runs))
	for i := range values {
		values[i] = value(i)
	}
	slices.Sort(values)
	return values
}

// median returns the middle value, or the mean of the two in the middle.
func median(v *variant, value func(i int) float64) float64 {
	s := sorted(v, value)
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// spread formats the median with the smallest and the largest value.
func spread(v *variant, format string, value func(i int) float64) string {
	s := sorted(v, value)
	return fmt.Sprintf(format+" ("+format+"-"+format+")", median(v, value), s[0], s[len(s)-1])
}

// rate formats bytes in a time.
func rate(n int64, d time.Duration) string {
	return fmt.Sprintf("%.2f GB/s", float64(n)/d.Seconds()/1e9)
}
