package report

import (
	"math"
	"strconv"
)

// levels is how many colours a scale has.
const levels = 10

// scale maps figures to levels of colour.
type scale struct {
	low, high float64
	log       bool
}

// logFrom is the ratio of the largest figure to the smallest from which a scale counts
// orders of magnitude: below it a linear one tells more.
const logFrom = 50

// scaleOf spans the finite figures. Zeros have the lowest level of a logarithmic scale.
func scaleOf(values []float64) scale {
	s := scale{math.Inf(1), math.Inf(-1), false}
	least := math.Inf(1) // of the positive ones
	negative := false
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		s.low, s.high = min(s.low, v), max(s.high, v)
		negative = negative || v < 0
		if v > 0 {
			least = min(least, v)
		}
	}
	if !negative && s.high > logFrom*least {
		s.low, s.log = least, true
	}
	return s
}

// at returns where a figure is between the ends, from 0 to 1.
func (s scale) at(v float64) float64 {
	low, high := s.low, s.high
	if s.log {
		if v <= 0 {
			return 0
		}
		low, high, v = math.Log(low), math.Log(high), math.Log(v)
	}
	if !(high > low) {
		return 0.5
	}
	return min(max((v-low)/(high-low), 0), 1)
}

// level is the colour of a figure; -1 if there is none.
func (s scale) level(v float64) int {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return -1
	}
	return min(int(s.at(v)*levels), levels-1)
}

// figure writes a number for a person.
func figure(v float64) string {
	switch {
	case math.IsNaN(v):
		return "not a number"
	case math.IsInf(v, 0):
		return "infinite"
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
