package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// HeatMap shows a figure of many tensors: kinds of tensors down, layers across. Where
// several tensors share a cell, as experts do, it shows the worst.
type HeatMap struct {
	Title   string
	Caption string
	Figure  string // what is shown: "relative error"
	Low     bool   // a small figure is what to look at, not a large one
	Marks   []Mark
	Share   bool                 // figures are parts of a whole: the colours go from 0 to 1
	Format  func(float64) string // of a figure; nil has one for all sizes
}

// Mark is a figure of a tensor.
type Mark struct {
	Tensor string
	Value  float64
}

// The bounds of a map: more rows than this are folded to the worst, more layers than this
// share columns.
const (
	maxKinds   = 48
	maxColumns = 128
)

// The sizes of a map, in units of its view box.
const (
	mapLabels = 270
	mapCells  = 680
	mapMargin = 10 // for half a label of the last layer
	rowHeight = 20
	maxCell   = 30
	labelRoom = 40 // characters of a label
)

// heatCell is everything that shares a cell.
type heatCell struct {
	worst Mark
	count int
}

// heatRow is a kind of tensor.
type heatRow struct {
	kind   string
	cells  map[int]*heatCell // by column; -1 is a tensor without a layer
	worst  float64
	single bool
}

type (
	heatView struct {
		ID, Title, Caption, Figure string
		Width, Height              int
		Rows                       []heatRowView
		Axis                       []axisLabel
		AxisY                      int
		Legend                     []int
		From, To                   string
		More                       int
		Log                        bool
	}
	heatRowView struct {
		TextY       int
		Label, Full string
		Cells       []heatCellView
	}
	heatCellView struct {
		X, Y, W, H float64
		Class      string
		Tip        string
	}
	axisLabel struct {
		X, Y float64
		Text string
	}
)

func (h *HeatMap) draw(id string) (string, any) {
	if len(h.Marks) == 0 {
		return "heat", nil
	}
	format := h.Format
	if format == nil {
		format = figure
	}
	g := h.gather()
	s := g.scale()
	if h.Share {
		s = scale{low: 0, high: 1}
	}
	columns := max(g.columns(), 1)
	width := min(float64(mapCells)/float64(columns), maxCell)
	v := &heatView{
		ID: id, Title: h.Title, Caption: h.Caption, Figure: h.Figure, Width: mapLabels + mapCells + mapMargin, More: g.more, Log: s.log,
		From: format(s.low), To: format(s.high),
	}
	for i := range levels {
		v.Legend = append(v.Legend, h.shade(i))
	}
	if s.low == s.high {
		v.To = "" // one figure everywhere needs no colours
	}
	for i, r := range g.rows {
		y := i * rowHeight
		row := heatRowView{TextY: y + rowHeight*7/10, Label: elided(r.label(g.prefix), labelRoom), Full: r.kind}
		for _, column := range sortedKeys(r.cells) {
			c := r.cells[column]
			cell := heatCellView{X: mapLabels + float64(column)*width, Y: float64(y) + 1, W: width, H: rowHeight - 2}
			if column < 0 { // no layer: as wide as all
				cell.X, cell.W = mapLabels, width*float64(columns)
			}
			if cell.W > 6 {
				cell.W--
			}
			cell.Class, cell.Tip = h.class(s.level(c.worst.Value)), c.tip(h.Figure, format)
			row.Cells = append(row.Cells, cell)
		}
		v.Rows = append(v.Rows, row)
	}
	v.AxisY = len(g.rows)*rowHeight + 16
	v.Height = v.AxisY + 8
	v.Axis = g.axis(width, float64(v.AxisY))
	return "heat", v
}

// class is the colour of a level.
func (h *HeatMap) class(level int) string {
	if level < 0 {
		return "qx"
	}
	return fmt.Sprintf("q%d", h.shade(level))
}

// shade turns a scale round whose small figures are to be looked at.
func (h *HeatMap) shade(level int) int {
	if h.Low {
		return levels - 1 - level
	}
	return level
}

func (c *heatCell) tip(what string, format func(float64) string) string {
	tip := fmt.Sprintf("%s: %s %s", c.worst.Tensor, what, format(c.worst.Value))
	if c.count > 1 {
		tip += fmt.Sprintf(" (the worst of %d tensors)", c.count)
	}
	return tip
}

func (r *heatRow) label(prefix string) string {
	if r.single {
		return r.kind
	}
	return r.kind[len(prefix):]
}

// heatGrid is a map before it has places on a page.
type heatGrid struct {
	rows   []*heatRow
	layers []int // in order
	shared int   // layers in a column
	prefix string
	more   int // rows that were left out
}

// gather sorts marks into cells.
func (h *HeatMap) gather() *heatGrid {
	g := new(heatGrid)
	seen := make(map[int]bool)
	for _, m := range h.Marks {
		if p := placeOf(m.Tensor); p.layer >= 0 && !seen[p.layer] {
			seen[p.layer] = true
			g.layers = append(g.layers, p.layer)
		}
	}
	slices.Sort(g.layers)
	g.shared = max((len(g.layers)+maxColumns-1)/maxColumns, 1)
	column := make(map[int]int)
	for i, l := range g.layers {
		column[l] = i / g.shared
	}
	rows := make(map[string]*heatRow)
	for _, m := range h.Marks {
		p := placeOf(m.Tensor)
		r := rows[p.kind]
		if r == nil {
			r = &heatRow{kind: p.kind, cells: make(map[int]*heatCell), worst: m.Value, single: p.layer < 0}
			rows[p.kind] = r
			g.rows = append(g.rows, r)
		}
		at := -1
		if p.layer >= 0 {
			at = column[p.layer]
		}
		c := r.cells[at]
		if c == nil {
			c = &heatCell{worst: m}
			r.cells[at] = c
		}
		c.count++
		if h.worse(m.Value, c.worst.Value) {
			c.worst = m
		}
		if h.worse(m.Value, r.worst) {
			r.worst = m.Value
		}
	}
	g.fold(h)
	var kinds []string
	for _, r := range g.rows {
		if !r.single {
			kinds = append(kinds, r.kind)
		}
	}
	g.prefix = sharedPrefix(kinds)
	return g
}

// worse orders figures; what is no number is worst.
func (h *HeatMap) worse(x, y float64) bool {
	switch {
	case math.IsNaN(x) || math.IsNaN(y):
		return math.IsNaN(x) && !math.IsNaN(y)
	case h.Low:
		return x < y
	}
	return x > y
}

// fold keeps the worst rows of too many, in their order; tensors without a layer go to the
// end.
func (g *heatGrid) fold(h *HeatMap) {
	if g.more = len(g.rows) - maxKinds; g.more > 0 {
		byWorst := slices.Clone(g.rows)
		slices.SortStableFunc(byWorst, func(x, y *heatRow) int {
			switch {
			case h.worse(x.worst, y.worst):
				return -1
			case h.worse(y.worst, x.worst):
				return 1
			}
			return 0
		})
		kept := make(map[*heatRow]bool)
		for _, r := range byWorst[:maxKinds] {
			kept[r] = true
		}
		g.rows = slices.DeleteFunc(g.rows, func(r *heatRow) bool { return !kept[r] })
	}
	g.more = max(g.more, 0)
	slices.SortStableFunc(g.rows, func(x, y *heatRow) int { return cmp.Compare(side(x), side(y)) })
}

func side(r *heatRow) int {
	if r.single {
		return 1
	}
	return 0
}

func (g *heatGrid) columns() int { return (len(g.layers) + g.shared - 1) / g.shared }

func (g *heatGrid) scale() scale {
	var values []float64
	for _, r := range g.rows {
		for _, c := range r.cells {
			values = append(values, c.worst.Value)
		}
	}
	return scaleOf(values)
}

// axis labels the columns that there is room for with the first layer in them.
func (g *heatGrid) axis(width, y float64) []axisLabel {
	const room = 26 // of a label
	every := max(int(math.Ceil(room/width)), 1)
	var labels []axisLabel
	for i := 0; i < g.columns(); i += every {
		labels = append(labels, axisLabel{mapLabels + (float64(i)+0.5)*width, y, fmt.Sprint(g.layers[i*g.shared])})
	}
	return labels
}

func sortedKeys[V any](m map[int]V) []int {
	keys := make([]int, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
