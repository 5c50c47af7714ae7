package report_test

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/loratool/loratool/report"
)

// attack is text that would run, close, load or break something wherever it is not
// escaped.
const attack = `</script></style></title></svg>'"><script>hacked()</script><img src="http://evil.test/x" onerror=hacked()>{{.}}`

// fullPage has something everywhere, all of its text made by a function.
func fullPage(text func(string) string, tensors int) *report.Page {
	heat := &report.HeatMap{Title: text("heat"), Caption: text("c"), Figure: text("error")}
	curves := &report.Curves{Title: text("curves"), Caption: text("c"), Axis: text("value")}
	table := report.Table{Title: text("table"), Caption: text("c"), Columns: []string{text("tensor"), text("error")}}
	finding := report.Finding{State: report.Bad, Word: text("error"), Code: text("code"), Meaning: text("meaning")}
	for i := range tensors {
		name := text(fmt.Sprintf("model.layers.%d.mlp.m%d.weight", i/7, i%7))
		heat.Marks = append(heat.Marks, report.Mark{Tensor: name, Value: float64(i)})
		curves.Lines = append(curves.Lines, report.Line{Tensor: name, Values: []float64{4, 2, 1}})
		table.Rows = append(table.Rows, []report.Cell{report.Text(name), report.Number(float64(i), "%.3g")})
		finding.Items = append(finding.Items, report.Item{Where: name, Message: text("wrong"), Value: text("1"), Limit: text("0")})
	}
	return &report.Page{
		Command: text("loratool verify"), Subject: text("model"), State: report.Bad, Verdict: text("Problems"), Summary: text("sum"),
		Facts: []report.Fact{{Label: text("l"), Value: text("v")}}, Findings: []report.Finding{finding}, Notes: []string{text("note")},
		Inputs: []report.Input{{Role: text("base"), Path: text("p"), Detail: text("d"), SHA256: text("h")}},
		Charts: []report.Chart{heat, curves, &report.Histogram{Title: text("histogram"), Caption: text("c"), Axis: text("steps"), Unit: text("values"),
			Bars: []report.Bar{{Label: text("0"), Count: 5}, {Label: text("1"), Count: 3}}}},
		Tables: []report.Table{table}, Version: text("v1"),
	}
}

func plain(s string) string { return s }

func encode(t *testing.T, p *report.Page) string {
	t.Helper()
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// tagNames counts the elements of a page.
func tagNames(page string) map[string]int {
	counts := make(map[string]int)
	for _, m := range regexp.MustCompile(`<([a-zA-Z!/][a-zA-Z0-9]*)`).FindAllStringSubmatch(page, -1) {
		counts[m[1]]++
	}
	return counts
}

// TestEscaping fills every text of a page with markup: the page must have the elements of
// the harmless one, no more and no fewer.
func TestEscaping(t *testing.T) {
	page := encode(t, fullPage(func(s string) string { return s + attack }, 14))
	want := tagNames(encode(t, fullPage(plain, 14)))
	got := tagNames(page)
	for name := range got {
		if got[name] != want[name] {
			t.Errorf("%d elements <%s>, want %d", got[name], name, want[name])
		}
	}
	if len(got) != len(want) || want["svg"] < 3 || want["script"] != 1 {
		t.Errorf("elements %v, want %v", got, want)
	}
	for _, forbidden := range []string{"<script>hacked", "<img", ` onerror=hacked()>{`} {
		if strings.Contains(page, forbidden) {
			t.Errorf("the page has %q", forbidden)
		}
	}
}

// TestNothingFetched looks for everything that makes a browser load something.
func TestNothingFetched(t *testing.T) {
	page := encode(t, fullPage(plain, 14))
	for _, pattern := range []string{`(?i)\bsrc\s*=`, `(?i)\bhref\s*=`, `(?i)url\(`, `(?i)@import`, `(?i)<(link|iframe|object|embed|img|image|base|form)\b`, `https?:`, `(?i)fetch\(|XMLHttpRequest|import\(|WebSocket`} {
		if m := regexp.MustCompile(pattern).FindString(page); m != "" {
			t.Errorf("the page has %q", m)
		}
	}
	if !strings.Contains(page, `default-src &#39;none&#39;`) && !strings.Contains(page, `default-src 'none'`) {
		t.Error("the policy of the page does not forbid to load things")
	}
}

// TestSize bounds a page: of a model with many tensors it must stay one that a browser
// opens at once, and say what it leaves out.
func TestSize(t *testing.T) {
	page := encode(t, fullPage(plain, 20000))
	const most = 2 << 20 // 1000 rows, 200 findings, 128 x 7 cells and 7 x 160 lines of some hundred bytes
	if len(page) > most {
		t.Errorf("the page has %d bytes", len(page))
	}
	for _, want := range []string{"and 19000 more", "and 19800 more", "more lines are not drawn", "the worst of"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// TestEmpty has nothing to draw, and numbers that are none.
func TestEmpty(t *testing.T) {
	for _, c := range []report.Chart{&report.HeatMap{Title: "gone"}, &report.Histogram{Title: "gone", Bars: []report.Bar{{Label: "0"}}}, &report.Curves{Title: "gone", Lines: []report.Line{{Tensor: "x"}, {Tensor: "y", Values: []float64{0}}}}} {
		if page := encode(t, &report.Page{State: report.Plain, Charts: []report.Chart{c}}); strings.Contains(page, "gone") || strings.Contains(page, "<figure") {
			t.Errorf("%T without figures is drawn", c)
		}
	}
	odd := &report.HeatMap{Title: "odd", Figure: "error", Marks: []report.Mark{
		{"layers.0.a", math.NaN()}, {"layers.1.a", math.Inf(1)}, {"layers.2.a", 1}, {"layers.2.b", -3}, {"head", 2},
	}}
	page := encode(t, &report.Page{State: report.Plain, Charts: []report.Chart{odd}})
	if n := strings.Count(page, `class="cell qx"`); n != 2 {
		t.Errorf("%d cells have no figure, want 2", n)
	}
	for _, text := range []string{"not a number", "infinite"} {
		if !strings.Contains(page, text) {
			t.Errorf("the page does not say %q", text)
		}
	}
	// Geometry is finite: no attribute holds what is no number.
	if m := regexp.MustCompile(`(?:x|y|width|height|points)="[^"]*(?:NaN|Inf)`).FindString(page); m != "" {
		t.Errorf("a picture has %q", m)
	}
}

// cells returns the class of the cell of every tensor, by its tip.
func cells(page string) map[string]string {
	all := make(map[string]string)
	for _, m := range regexp.MustCompile(`<rect class="cell (\w+)"[^>]*><title>([^:]*): `).FindAllStringSubmatch(page, -1) {
		all[m[2]] = m[1]
	}
	return all
}

// TestHeat follows figures to colours: the worst of a shared cell, an order of magnitude a
// step where figures span many, and fixed ends for shares.
func TestHeat(t *testing.T) {
	mark := func(name string, v float64) report.Mark { return report.Mark{Tensor: name, Value: v} }
	for _, c := range []struct {
		name string
		heat report.HeatMap
		want map[string]string
	}{
		{"linear", report.HeatMap{Marks: []report.Mark{mark("l.0.a", 1), mark("l.1.a", 5.6), mark("l.2.a", 11)}}, map[string]string{"l.0.a": "q0", "l.1.a": "q4", "l.2.a": "q9"}},
		{"low", report.HeatMap{Low: true, Marks: []report.Mark{mark("l.0.a", 1), mark("l.2.a", 11)}}, map[string]string{"l.0.a": "q9", "l.2.a": "q0"}},
		{"orders", report.HeatMap{Marks: []report.Mark{mark("l.0.a", 0), mark("l.1.a", 1e-10), mark("l.2.a", 2e-5), mark("l.3.a", 1)}},
			map[string]string{"l.0.a": "q0", "l.1.a": "q0", "l.2.a": "q5", "l.3.a": "q9"}},
		{"share", report.HeatMap{Share: true, Marks: []report.Mark{mark("l.0.a", 0.35), mark("l.1.a", 0.45), mark("l.2.a", 1.5)}},
			map[string]string{"l.0.a": "q3", "l.1.a": "q4", "l.2.a": "q9"}},
		{"experts", report.HeatMap{Marks: []report.Mark{mark("l.0.e.0.w", 1), mark("l.0.e.1.w", 3), mark("l.0.e.2.w", 2), mark("l.1.e.0.w", 2)}},
			map[string]string{"l.0.e.1.w": "q9", "l.1.e.0.w": "q0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := cells(encode(t, &report.Page{State: report.Plain, Charts: []report.Chart{&c.heat}}))
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("cells %v, want %v", got, c.want)
			}
		})
	}
}

// TestSame encodes a page twice: what depends on the order of a map would show.
func TestSame(t *testing.T) {
	a, b := encode(t, fullPage(plain, 700)), encode(t, fullPage(plain, 700))
	if !bytes.Equal([]byte(a), []byte(b)) {
		t.Error("the same page has other bytes")
	}
}
