// Package linalgtest makes matrices with known singular values, for the tests and the
// measurements of decompositions.
package linalgtest

import (
	"math"

	"github.com/loratool/loratool/internal/linalg"
)

// Source is a fixed generator of test data (splitmix64).
type Source struct{ state uint64 }

// NewSource returns a generator of its own sequence for each seed.
func NewSource(seed uint64) *Source { return &Source{seed * 0x9e3779b97f4a7c15} }

// Uint64 returns 64 random bits.
func (s *Source) Uint64() uint64 {
	s.state += 0x9e3779b97f4a7c15
	z := s.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Uniform returns a number in (0,1).
func (s *Source) Uniform() float64 { return (float64(s.Uint64()>>11) + 0.5) * 0x1p-53 }

// Normal returns a standard normal number (Box and Muller).
func (s *Source) Normal() float64 {
	return math.Sqrt(-2*math.Log(s.Uniform())) * math.Cos(2*math.Pi*s.Uniform())
}

// Spectra are the reference spectra that decompositions are judged by: P decays
// slowly, Q faster with noise below, R is 64 directions above a noise floor.
// Noise has the singular values of a square matrix of independent normal
// numbers, whose largest is edge.
var Spectra = []string{"P", "Q", "R"}

// Spectrum returns the singular values of a kind of [Spectra], n of them.
func Spectrum(kind string, n int) []float64 {
	s := make([]float64, n)
	for i := range s {
		x := float64(i + 1)
		switch kind {
		case "P":
			s[i] = math.Pow(x, -0.5)
		case "Q":
			s[i] = math.Hypot(1/x, 0.01*quarterCircle(float64(i)/float64(n)))
		case "R":
			s[i] = 0.05 * quarterCircle(float64(i)/float64(n))
			if i < 64 {
				s[i] = math.Hypot(math.Pow(x, -0.6), s[i])
			}
		default:
			panic("unknown spectrum " + kind)
		}
	}
	return s
}

// quarterCircle returns the x in [0,1] above which the quarter circle law,
// density 4/pi*sqrt(1-x^2), has the share q.
func quarterCircle(q float64) float64 {
	low, high := 0.0, 1.0
	for range 50 {
		x := (low + high) / 2
		if 1-2/math.Pi*(x*math.Sqrt(1-x*x)+math.Asin(x)) > q {
			low = x
		} else {
			high = x
		}
	}
	return low
}

// WithSpectrum returns a rows x cols matrix with the given singular values, at
// most min(rows, cols), and random singular vectors, right to float32 rounding.
func WithSpectrum(rows, cols int, s []float64, seed uint64) linalg.Matrix {
	rng := NewSource(seed)
	work := make([][]float64, rows)
	for i := range work {
		work[i] = make([]float64, cols)
		if i < len(s) {
			work[i][i] = s[i]
		}
	}
	turnRows(rng, work)
	columns := make([][]float64, cols)
	for j := range columns {
		columns[j] = make([]float64, rows)
		for i := range columns[j] {
			columns[j][i] = work[i][j]
		}
	}
	turnRows(rng, columns)
	m := linalg.NewMatrix(rows, cols, nil)
	for j, column := range columns {
		for i, v := range column {
			m.Data[i*cols+j] = float32(v)
		}
	}
	return m
}

// turnRows multiplies every row with the same random orthogonal matrix: random
// signs and Hadamard transforms for powers of two, else random reflections.
func turnRows(rng *Source, x [][]float64) {
	n := len(x[0])
	if n&(n-1) == 0 {
		for range 3 {
			signs := make([]float64, n)
			for i := range signs {
				signs[i] = math.Copysign(1/math.Sqrt(float64(n)), rng.Uniform()-0.5)
			}
			for _, row := range x {
				for i := range row {
					row[i] *= signs[i]
				}
				hadamard(row)
			}
		}
		return
	}
	for range min(n, 40) {
		v := make([]float64, n)
		square := 0.0
		for i := range v {
			v[i] = rng.Normal()
			square += v[i] * v[i]
		}
		for _, row := range x {
			sum := 0.0
			for i := range row {
				sum += row[i] * v[i]
			}
			for i := range row {
				row[i] -= 2 / square * sum * v[i]
			}
		}
	}
}

func hadamard(x []float64) {
	for h := 1; h < len(x); h *= 2 {
		for i := 0; i < len(x); i += 2 * h {
			a, b := x[i:i+h], x[i+h:i+2*h]
			for j, v := range a {
				w := b[j]
				a[j], b[j] = v+w, v-w
			}
		}
	}
}

// Tail returns the norm of s behind the first rank, the best residual there is.
func Tail(s []float64, rank int) float64 {
	sum := 0.0
	for _, v := range s[min(rank, len(s)):] {
		sum += v * v
	}
	return math.Sqrt(sum)
}
