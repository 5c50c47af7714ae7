// Package report writes what a command has found as one HTML page: a verdict, findings
// with what they mean, inputs, pictures and tables.
//
// A [Page] is plain data, filled by whoever has results; [Page.Encode] lays it out. The
// page is one file that fetches nothing: its style, its script and its pictures, which are
// SVG, are in it, and its content security policy forbids everything else. All text goes
// through html/template, so that names of tensors and files can't become markup. A page
// stays small whatever the size of the model: pictures show layers by kinds of tensors,
// tables their first rows, and both say what they leave out.
//
// The package reads no files and knows no command. Pages have no time and no random
// numbers in them: the same results give the same bytes.
package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
)

// State is how good a result is; it chooses colour and mark.
type State string

// The states. Plain is a result that is neither good nor bad.
const (
	Good    State = "good"
	Warning State = "warning"
	Bad     State = "bad"
	Plain   State = "plain"
)

// Page is everything on a page, from the top down. What is empty is left out.
type Page struct {
	Command string // "loratool verify"
	Subject string // what was looked at: a path, or two
	State   State
	Verdict string // the result in a few words
	Summary string // a sentence more

	Facts    []Fact
	Findings []Finding
	Notes    []string // what was decided on the way
	Inputs   []Input
	Charts   []Chart
	Tables   []Table

	Version string // of the program
}

// Fact is a figure for its own sake.
type Fact struct{ Label, Value string }

// Finding is all that was found of one kind.
type Finding struct {
	State   State
	Word    string // of the state: "error"
	Code    string
	Meaning string
	Items   []Item
}

// Item is one place where something was found.
type Item struct{ Where, Message, Value, Limit string }

// Input is a file or a model that the result depends on.
type Input struct{ Role, Path, Detail, SHA256 string }

// Chart is a picture: [HeatMap], [Histogram] or [Curves].
type Chart interface {
	// draw returns the name of a template and what it is filled with; nil if there is
	// nothing to draw.
	draw(id string) (name string, data any)
}

// Table is a table that can be sorted and searched. Only its first rows are shown, so that
// they come in an order of interest.
type Table struct {
	Title   string
	Caption string
	Columns []string
	Rows    [][]Cell
	Open    bool // unfolded at first
}

// Cell is text; a number has the value that it is sorted by.
type Cell struct {
	Text   string
	Number bool
	Value  float64
}

// Text is a cell of text.
func Text(s string) Cell { return Cell{Text: s} }

// Number is a cell with a number, in the form that a person reads.
func Number(v float64, format string) Cell {
	return Cell{Text: fmt.Sprintf(format, v), Number: true, Value: v}
}

const (
	// maxRows of a table and maxItems of a finding are as many as a browser draws at once.
	maxRows  = 1000
	maxItems = 200
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"mark": mark}).Parse(pageHTML))

// mark is a sign for those who see no colours.
func mark(s State) string {
	switch s {
	case Good:
		return "✓"
	case Warning:
		return "!"
	case Bad:
		return "✕"
	}
	return "i"
}

// sheet is what the template is filled with.
type sheet struct {
	*Page
	Policy   string
	Style    template.CSS
	Script   template.JS
	Findings []shownFinding
	Pictures []template.HTML
	Tables   []shownTable
	Hashed   bool // any input
}

type shownFinding struct {
	Finding
	Total, More int
	HasNumbers  bool
}

type shownTable struct {
	Table
	ID          string
	Total, More int
}

// Encode lays the page out.
func (p *Page) Encode() ([]byte, error) {
	s := sheet{
		Page: p, Style: template.CSS(pageCSS), Script: template.JS(pageJS),
		Policy: fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'", sourceHash(pageCSS), sourceHash(pageJS)),
	}
	for _, f := range p.Findings {
		shown := shownFinding{Finding: f, Total: len(f.Items)}
		shown.Items = f.Items[:min(len(f.Items), maxItems)]
		shown.More = shown.Total - len(shown.Items)
		for _, item := range shown.Items {
			shown.HasNumbers = shown.HasNumbers || item.Value != "" || item.Limit != ""
		}
		s.Findings = append(s.Findings, shown)
	}
	for _, in := range p.Inputs {
		s.Hashed = s.Hashed || in.SHA256 != ""
	}
	for i, t := range p.Tables {
		shown := shownTable{Table: t, ID: fmt.Sprintf("table%d", i), Total: len(t.Rows)}
		shown.Rows = t.Rows[:min(len(t.Rows), maxRows)]
		shown.More = shown.Total - len(shown.Rows)
		s.Tables = append(s.Tables, shown)
	}
	var b bytes.Buffer
	for i, c := range p.Charts {
		name, data := c.draw(fmt.Sprintf("chart%d", i))
		if data == nil {
			continue
		}
		b.Reset()
		if err := pageTemplate.ExecuteTemplate(&b, name, data); err != nil {
			return nil, fmt.Errorf("drawing a picture: %w", err)
		}
		s.Pictures = append(s.Pictures, template.HTML(b.String())) // escaped by its own template
	}
	b.Reset()
	if err := pageTemplate.Execute(&b, s); err != nil {
		return nil, fmt.Errorf("laying out the report: %w", err)
	}
	return b.Bytes(), nil
}

// sourceHash names a style or a script in a content security policy.
func sourceHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
