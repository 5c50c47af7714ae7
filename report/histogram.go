package report

import (
	"fmt"
	"math"
)

// Histogram shows how often something is what.
type Histogram struct {
	Title   string
	Caption string
	Axis    string // what the labels of the bars are
	Unit    string // what is counted: "values"
	Bars    []Bar
}

// Bar is a count.
type Bar struct {
	Label string
	Count int64
}

const (
	// maxBars is as many as have room; what is beyond is one bar.
	maxBars = 40

	histogramWidth, histogramHeight = 960, 200
	barsTop, barsLeft               = 22, 10
)

type (
	histogramView struct {
		ID, Title, Caption, Axis, Unit string
		Width, Height                  int
		Bars                           []barView
		Base                           float64
		Log                            bool
	}
	barView struct {
		X, Y, W, H, Middle  float64
		LabelY, ShareY      float64
		Label, Share, Count string
	}
)

func (h *Histogram) draw(id string) (string, any) {
	bars, total := h.Bars, int64(0)
	for _, b := range bars {
		total += b.Count
	}
	if total == 0 {
		return "histogram", nil
	}
	if len(bars) > maxBars {
		rest := Bar{Label: bars[maxBars-1].Label + " and more"}
		for _, b := range bars[maxBars-1:] {
			rest.Count += b.Count
		}
		bars = append(append([]Bar{}, bars[:maxBars-1]...), rest)
	}
	v := &histogramView{ID: id, Title: h.Title, Caption: h.Caption, Axis: h.Axis, Unit: h.Unit, Width: histogramWidth, Height: histogramHeight + barsTop + 40}
	most, least := int64(0), int64(math.MaxInt64)
	for _, b := range bars {
		most = max(most, b.Count)
		if b.Count > 0 {
			least = min(least, b.Count)
		}
	}
	v.Log = float64(most) > logFrom*float64(least)
	v.Base = barsTop + histogramHeight
	width := min(float64(histogramWidth-2*barsLeft)/float64(len(bars)), 120)
	for i, b := range bars {
		height := float64(b.Count) / float64(most)
		if v.Log {
			height = math.Log1p(float64(b.Count)) / math.Log1p(float64(most))
		}
		height *= histogramHeight
		x := barsLeft + float64(i)*width
		v.Bars = append(v.Bars, barView{
			X: x + 2, W: width - 4, Y: v.Base - height, H: height, Middle: x + width/2,
			LabelY: v.Base + 17, ShareY: v.Base - height - 6,
			Label: b.Label, Share: share(b.Count, total), Count: fmt.Sprint(b.Count),
		})
	}
	return "histogram", v
}

// share writes a part of a whole; what is there is never 0 %, and not all never 100 %.
func share(n, of int64) string {
	percent := 100 * float64(n) / float64(of)
	switch {
	case n == 0:
		return "0"
	case percent < 0.1:
		return "<0.1%"
	case n < of && percent > 99.9:
		return ">99.9%"
	}
	return fmt.Sprintf("%.3g%%", percent)
}
