package extract

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/tensor"
)

// Certificate says how much of the difference between two models an adapter
// carries, module by module and in all. Norms are Frobenius norms of D, the change,
// in float64.
type Certificate struct {
	Modules []Module
	// Share is the part of the squared norm of all changes that the adapter holds:
	// 1 - sum of ||D - held||^2 / sum of ||D||^2. A resized table counts with the
	// rows that both sides have.
	Share float64
	// Residual is what is missing, as ||D - held|| / ||D||.
	Residual float64
	// LeftOut is the part that was left out by request or for want of a form.
	LeftOut   float64
	DeltaNorm float64
	// Parameters counts all that is stored, Padding included.
	Parameters int64
	Padding    int64 // parameters that are zeros, as their modules have fewer directions
	Bytes      int64 // of tensor data
	LowRank    bool  // false if the pairs hold less than plainShare of their changes
	Sentence   string
}

// Module is the certificate of one item.
type Module struct {
	Name, Role, Form string
	Shape            tensor.Shape
	Rank             int64 // 0 for all that is no pair
	// Needed is the rank that the rule gives the module by itself. Rank is more in a
	// plain adapter, where all modules have the largest one.
	Needed int64
	// Kept is the share of ||D||^2 that the form holds, Residual the rest as
	// ||D - held|| / ||D||. Rounding bounds what storing the factors in their
	// element type may add to it.
	Kept, Residual, Rounding float64
	// Best is a lower bound on the residual of the best approximation of this
	// rank: Residual / (1 + Excess).
	Best, Excess float64
	BaseNorm     float64
	DeltaNorm    float64
	Ranks        EffectiveRanks
	Values       []float64 // singular values of the change of a pair, those that were computed
	Capped       bool      // the rule would have taken more directions
	Converged    bool      // the solver met its own bound on Excess
	Parameters   int64
	Padding      int64 // of Parameters, zeros where the matrix has no more directions
	Bytes        int64
}

// EffectiveRanks say how many directions a change really has. With p_i =
// s_i / sum s and q_i = s_i^2 / sum s^2:
//
//	Effective  exp(-sum p_i ln p_i)      O. Roy, M. Vetterli, 2007
//	Entropy    exp(-sum q_i ln q_i)      the same of the energy
//	Stable     ||D||_F^2 / s_1^2         M. Rudelson, R. Vershynin, 2007
//
// Where not all singular values are known the rest of the energy is taken to be
// spread evenly over the other directions, as far as they may be as large as that:
// then Effective and Entropy are upper bounds.
type EffectiveRanks struct {
	Effective, Entropy, Stable float64
	Exact                      bool
}

// plainShare is the share of a change below which it can't be called low-rank.
const plainShare = 0.9

// certificate puts together what is known of every item.
func (d *draft) certificate(bytes map[*carried]int64) Certificate {
	var c Certificate
	var delta, lost, left, pairs, pairsLost float64
	for _, x := range d.all {
		m := d.certify(x)
		m.Bytes = bytes[x]
		if m.Bytes > 0 {
			bits := x.parts[0].tuned.DType.Bits()
			if x.form == pairForm || x.form == addForm {
				bits = d.s.opts.factorType().Bits()
			}
			m.Parameters = m.Bytes * 8 / bits
		}
		c.Parameters += m.Parameters
		c.Padding += m.Padding
		c.Bytes += m.Bytes
		if x.form == unchanged {
			continue
		}
		if x.tie { // its change is the embedding's, which is counted there
			m.DeltaNorm = 0
		}
		c.Modules = append(c.Modules, m)
		square, missing := m.DeltaNorm*m.DeltaNorm, m.Residual*m.Residual*m.DeltaNorm*m.DeltaNorm
		delta += square
		lost += missing
		switch {
		case x.form == lostForm || x.fromBase:
			left += square
		case x.form == pairForm:
			pairs += square
			pairsLost += missing
		}
	}
	c.DeltaNorm = math.Sqrt(delta)
	c.Share, c.LowRank = 1, true
	if delta > 0 {
		c.Share, c.Residual, c.LeftOut = 1-lost/delta, math.Sqrt(lost/delta), left/delta
	}
	if pairs > 0 {
		c.LowRank = 1-pairsLost/pairs >= plainShare
	}
	return c
}

// certify makes the certificate of one item.
func (d *draft) certify(x *carried) Module {
	m := Module{
		Name: x.name(), Role: x.role.String(), Form: x.form.String(), Shape: x.shape,
		BaseNorm: math.Sqrt(x.finding.base), DeltaNorm: math.Sqrt(x.finding.delta),
		Kept: 1, Capped: x.choice.Capped, Converged: true,
	}
	switch x.form {
	case lostForm:
		m.Kept, m.Residual, m.Best = 0, 1, 1
	case savedForm, addForm:
		if x.fromBase && x.finding.delta > 0 {
			m.Kept, m.Residual, m.Best = 0, 1, 1
		}
	case pairForm:
		m.Rank, m.Needed = x.rank(), x.needed
		m.Padding = padding(x)
		s := x.spectrum
		m.Residual = relative(s.residual(m.Rank), s.Total)
		m.Kept = 1 - m.Residual*m.Residual
		m.Excess = x.finding.excess()
		m.Best = m.Residual / (1 + m.Excess)
		m.Rounding = roundingBound(x, d.s.opts.factorType())
		m.Ranks, m.Values = s.Ranks(), s.values()
		for _, b := range x.finding.spectra {
			m.Converged = m.Converged && b.converged
		}
	}
	return m
}

// padding counts the parameters of a pair that are zeros because a matrix, or one
// of a stack, has fewer directions than the pair.
func padding(x *carried) int64 {
	n := int64(0)
	for _, b := range x.finding.spectra {
		known := int64(len(b.values))
		for known > 0 && b.values[known-1] == 0 {
			known--
		}
		n += max(x.rank()-known, 0) * (x.out + x.in)
	}
	return n
}

// values are the singular values of what was decomposed.
func (s Spectrum) values() []float64 {
	values := make([]float64, len(s.Squares))
	for i, square := range s.Squares {
		values[i] = math.Sqrt(max(square, 0))
	}
	return values
}

// Ranks computes the three ranks of a spectrum.
func (s Spectrum) Ranks() EffectiveRanks {
	if len(s.Squares) == 0 || s.Squares[0] == 0 {
		return EffectiveRanks{Exact: true}
	}
	values := s.Squares
	rest := s.Total
	for _, v := range values {
		rest -= v
	}
	others := float64(s.Limit - int64(len(values)))
	tail := 0.0
	if others > 0 {
		tail = math.Max(rest, 0) / others
	}
	// None of the others is larger than the last known one.
	tail = math.Min(tail, values[len(values)-1])
	return EffectiveRanks{
		Effective: entropyRank(values, tail, others, math.Sqrt),
		Entropy:   entropyRank(values, tail, others, func(v float64) float64 { return v }),
		Stable:    s.Total / values[0],
		Exact:     others == 0,
	}
}

// entropyRank is exp of the entropy of weights that are made of the squares of
// singular values: the known ones, and others that are all alike.
func entropyRank(squares []float64, tail, others float64, weight func(float64) float64) float64 {
	sum, logs := 0.0, 0.0
	add := func(v, times float64) {
		if w := weight(v); w > 0 && times > 0 {
			sum += w * times
			logs += w * times * math.Log(w)
		}
	}
	for _, v := range squares {
		add(v, 1)
	}
	add(tail, others)
	return math.Exp(math.Log(sum) - logs/sum)
}

// roundingBound bounds ||(B+b)(A+a) - BA|| / ||D|| for factors whose numbers are
// rounded: b and a are at most u times the elements, plus half a subnormal step,
// so that
//
//	||b||_F <= u·||B||_F + t·sqrt(elements of B),   ||B||_2 = ||A||_2 = sqrt(s_1)
//	||bA + Ba + ba|| <= ||b||_F·||A||_2 + ||B||_2·||a||_F + ||b||_F·||a||_F
//
// where B stands for scale·B, as the scale is exact but for one rounding more.
func roundingBound(x *carried, d tensor.DType) float64 {
	u, t := unit(d)
	total := 0.0 // of the squares, over the stack
	for _, b := range x.finding.spectra {
		n := min(x.rank(), int64(len(b.values)))
		if n == 0 {
			continue
		}
		sum := 0.0 // ||A||_F^2 = ||B||_F^2
		for _, v := range b.values[:n] {
			sum += v
		}
		norm, spectral := math.Sqrt(sum), math.Sqrt(b.values[0])
		eb := u*norm + t*math.Sqrt(float64(x.out*n))
		ea := u*norm + t*math.Sqrt(float64(x.in*n))
		e := spectral*(ea+eb) + ea*eb
		total += e * e
	}
	return relative(total, x.spectrum.Total)
}

// Percent writes a share with two decimals, or with up to four where fewer would
// call it all that is not all.
func Percent(share float64) string {
	for digits := 2; digits <= 4; digits++ {
		if text := strconv.FormatFloat(100*share, 'f', digits, 64); share >= 1 || !strings.HasPrefix(text, "100.") {
			return text + "%"
		}
	}
	return "100.00%"
}

// unit returns the relative error of rounding to a type, and half of its smallest
// step.
func unit(d tensor.DType) (relative, absolute float64) {
	switch d {
	case tensor.BF16:
		return 0x1p-8, 0x1p-134
	case tensor.F16:
		return 0x1p-11, 0x1p-25
	case tensor.F64:
		return 0x1p-53, 0
	}
	return 0x1p-24, 0x1p-150
}

// explain puts the result into a sentence and warns of what a reader of the figures
// might miss.
func (c *Certificate) explain(x *Extraction) {
	c.Sentence = fmt.Sprintf("the adapter carries %s of the squared norm of the change, relative error %.3g", Percent(c.Share), c.Residual)
	if c.LeftOut > 0 {
		c.Sentence += fmt.Sprintf("; %s was left out", Percent(c.LeftOut))
	}
	if !c.LowRank {
		short := 0
		for _, m := range c.Modules {
			if m.Rank > 0 && m.Kept < plainShare {
				short++
			}
		}
		c.Sentence += fmt.Sprintf("; the change is not of low rank: at this size %d of its layers keep less than %.0f%% of theirs", short, 100*plainShare)
	}
	c.explainOneRank(x)
	for _, m := range c.Modules {
		switch {
		case m.Capped:
			x.decide("rank-capped", "the rule asks for a higher rank than the largest one allowed", m.Name)
		case !m.Converged:
			x.decide("not-converged", "the iteration stopped before its own bound was met; --exact decomposes in full", m.Name)
		}
	}
}

// explainOneRank says which modules have a higher rank than they need, and what it
// costs.
func (c *Certificate) explainOneRank(x *Extraction) {
	var names []string
	var rank, parameters, bytes, zeros int64
	for _, m := range c.Modules {
		if m.Needed == m.Rank {
			continue
		}
		names, rank = append(names, m.Name), m.Rank
		more := m.Rank - m.Needed
		parameters, bytes, zeros = parameters+m.Parameters/m.Rank*more, bytes+m.Bytes/m.Rank*more, zeros+m.Padding
	}
	if len(names) > 0 {
		x.decide("one-rank", fmt.Sprintf("a plain adapter has one rank for all, %d: these layers need less of it, so that %d parameters (%d bytes) are more than they need, %d of them zeros",
			rank, parameters, bytes, zeros), names...)
	}
}
