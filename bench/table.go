package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// row is one line of the table.
type row struct {
	figure          string
	ours, reference string
	// cpu and wall are the ratios of the reference's time to ours by CPU time and by
	// the clock on the wall, one per round; either may be missing.
	cpu, wall series
	// byWall says which of the two counts: CPU time if one thread works, since others
	// use the machine too, else the wall, since waiting is part of the matter.
	byWall bool
	goal   float64 // of the median; 0 if there is none
	// failed names another goal that was missed, such as an accuracy.
	failed string
}

// verdict says whether the goal was met.
func (r row) verdict() string {
	counted := r.cpu
	if r.byWall {
		counted = r.wall
	}
	switch {
	case r.goal == 0 && r.failed == "":
		return "-"
	case r.failed != "":
		return "no: " + r.failed
	case counted.median() >= r.goal:
		return "yes"
	}
	return "no"
}

func printHeader(w io.Writer) {
	fmt.Fprintln(w, "| figure | ours | reference | ratio by CPU time | ratio by wall time | goal | met |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- |")
}

func printRows(w io.Writer, rows []row) {
	for _, r := range rows {
		goal := "-"
		if r.goal > 0 {
			goal = fmt.Sprintf(">= %.4g", r.goal)
			if r.byWall {
				goal += " (wall)"
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", r.figure, r.ours, r.reference, r.cpu.spread(), r.wall.spread(), goal, r.verdict())
	}
}

// spread formats the median with the smallest and the largest number.
func (s series) spread() string {
	if len(s) == 0 {
		return "-"
	}
	m := s.median()
	digits := max(0, 2-int(math.Floor(math.Log10(max(m, 1e-9))))) // three significant ones
	return fmt.Sprintf("%.*f (%.*f-%.*f)", digits, m, digits, slices.Min(s), digits, slices.Max(s))
}

// speed formats work done per second, the median over rounds.
func speed(work float64, seconds series, unit string) string {
	return fmt.Sprintf("%.3g %s", work/seconds.median()/1e9, unit)
}

// milliseconds formats the median of a short time.
func milliseconds(s series) string { return fmt.Sprintf("%.3g ms", 1e3*s.median()) }

// seconds formats the median of a time.
func seconds(s series) string { return fmt.Sprintf("%.3g s", s.median()) }
