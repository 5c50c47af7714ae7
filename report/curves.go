package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Curves shows falling series, as the singular values of matrices are, each relative to
// its first: a panel for every kind of tensor, a line for every tensor, its colour the
// layer's.
type Curves struct {
	Title   string
	Caption string
	Axis    string // what is counted across: "singular value"
	Lines   []Line
}

// Line is one series.
type Line struct {
	Tensor string
	Values []float64
}

const (
	// maxPanels and maxLines bound a picture, maxPoints a line.
	maxPanels = 12
	maxLines  = 160
	maxPoints = 128

	panelWidth, panelHeight = 306, 150
	panelGap, panelTop      = 14, 24
	panelsAcross            = 3
	panelLeft               = 44
)

type (
	curvesView struct {
		ID, Title, Caption, Axis string
		Width, Height            int
		Panels                   []panelView
		Legend                   []int
		First, Last              int
		MoreKinds, MoreLines     int
	}
	panelView struct {
		X, Y        float64
		Right       float64
		Bottom      float64
		Label, Full string
		Grid        []gridLine
		Lines       []lineView
		Last        int // number of values
	}
	gridLine struct {
		Y    float64
		Text string
	}
	lineView struct {
		Points, Class, Tip string
		Dot                bool
		X, Y               float64
	}
	panel struct {
		kind  string
		lines []Line
	}
)

func (c *Curves) draw(id string) (string, any) {
	panels, first, last := c.gather()
	if len(panels) == 0 {
		return "curves", nil
	}
	v := &curvesView{ID: id, Title: c.Title, Caption: c.Caption, Axis: c.Axis, Width: panelsAcross*panelWidth + (panelsAcross-1)*panelGap, First: first, Last: last}
	if len(panels) > maxPanels {
		v.MoreKinds = len(panels) - maxPanels
		panels = panels[:maxPanels]
	}
	for i := range levels {
		v.Legend = append(v.Legend, i)
	}
	depth := scale{low: float64(first), high: float64(last)}
	for i, p := range panels {
		x := float64(i % panelsAcross * (panelWidth + panelGap))
		y := float64(i / panelsAcross * (panelHeight + panelTop + panelGap + 14))
		v.Panels = append(v.Panels, drawPanel(p, x, y+panelTop, depth))
		v.MoreLines += max(len(p.lines)-maxLines, 0)
	}
	rows := (len(panels) + panelsAcross - 1) / panelsAcross
	v.Height = rows * (panelHeight + panelTop + panelGap + 14)
	return "curves", v
}

// gather sorts lines into panels, those of most lines first, and finds the layers.
func (c *Curves) gather() (panels []*panel, first, last int) {
	byKind := make(map[string]*panel)
	first = -1
	for _, l := range c.Lines {
		if len(l.Values) == 0 || !(l.Values[0] > 0) || math.IsInf(l.Values[0], 0) {
			continue
		}
		at := placeOf(l.Tensor)
		p := byKind[at.kind]
		if p == nil {
			p = &panel{kind: at.kind}
			byKind[at.kind] = p
			panels = append(panels, p)
		}
		p.lines = append(p.lines, l)
		if at.layer >= 0 {
			if first < 0 || at.layer < first {
				first = at.layer
			}
			last = max(last, at.layer)
		}
	}
	slices.SortStableFunc(panels, func(x, y *panel) int { return -cmp.Compare(len(x.lines), len(y.lines)) })
	return panels, max(first, 0), last
}

// drawPanel draws the lines of a kind over decades.
func drawPanel(p *panel, x, y float64, depth scale) panelView {
	lines := p.lines[:min(len(p.lines), maxLines)]
	least, longest := 1.0, 1
	for _, l := range lines {
		longest = max(longest, min(len(l.Values), maxPoints))
		for _, v := range l.Values[:min(len(l.Values), maxPoints)] {
			if r := v / l.Values[0]; r > 0 {
				least = min(least, r)
			}
		}
	}
	// A decade at least, and not what is only rounding.
	const smallest = 1e-6
	decades := math.Ceil(-math.Log10(max(least, smallest)) - 1e-9)
	decades = max(decades, 1)
	height := func(r float64) float64 {
		return y + panelHeight*min(max(-math.Log10(max(r, smallest))/decades, 0), 1)
	}
	left, width := x+panelLeft, float64(panelWidth-panelLeft)
	v := panelView{X: left, Y: y, Right: left + width, Bottom: y + panelHeight + 15, Label: elided(strings.TrimPrefix(p.kind, "model.layers.*."), 42), Full: p.kind, Last: longest}
	for d := 0.0; d <= decades; d++ {
		v.Grid = append(v.Grid, gridLine{y + panelHeight*d/decades, figure(math.Pow(10, -d))})
	}
	for _, l := range lines {
		v.Lines = append(v.Lines, drawLine(l, left, width, longest, height, depth))
	}
	return v
}

func drawLine(l Line, left, width float64, longest int, height func(float64) float64, depth scale) lineView {
	values := l.Values[:min(len(l.Values), maxPoints)]
	var points strings.Builder
	for i, v := range values {
		fmt.Fprintf(&points, "%.1f,%.1f ", left+width*float64(i)/float64(max(longest-1, 1)), height(v/l.Values[0]))
	}
	level := 0
	if at := placeOf(l.Tensor); at.layer >= 0 {
		level = depth.level(float64(at.layer))
	}
	return lineView{
		Points: strings.TrimSpace(points.String()), Class: fmt.Sprintf("l%d", level), Dot: len(values) == 1, X: left, Y: height(1),
		Tip: fmt.Sprintf("%s: the largest is %s, the last shown %s", l.Tensor, figure(l.Values[0]), figure(values[len(values)-1])),
	}
}
