package verify

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/engine"
)

// Severity says what a finding means for a gate.
type Severity string

// The severities. An error is a fault: the thing does not do what it says. A warning
// is likely to be one. Info is worth knowing and no fault.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// Code is one kind of finding.
type Code struct {
	Name     string
	Family   string
	Severity Severity
	Meaning  string
	// Value and Limit say what the numbers of a finding are; "" if it has none.
	Value, Limit string
}

// Finding is one thing that a check has found. Tensor is empty when it is about the
// whole; Value and Limit are nil when there is no number.
type Finding struct {
	Code         string
	Severity     Severity
	Tensor       string
	Message      string
	Value, Limit *float64
}

// Report is the result of one or several families of checks.
type Report struct {
	Findings   []Finding
	Families   []string // that were run, in order
	Tensors    int      // that were looked at
	Merge      *MergeFigures
	LoftQ      *LoftQResult
	Quantized  *QuantizedFigures
	Conversion *ConversionFigures
	Output     *OutputFigures
	Function   *FunctionFigures
}

// OK reports whether there is no error.
func (r *Report) OK() bool { return r.Count(Error) == 0 }

// Count counts the findings of a severity.
func (r *Report) Count(s Severity) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// add appends a finding. The code gives its severity.
func (r *Report) add(code, tensor, format string, args ...any) *Finding {
	i := slices.IndexFunc(codes, func(c Code) bool { return c.Name == code })
	if i < 0 {
		panic("verify: no code " + code)
	}
	r.Findings = append(r.Findings, Finding{Code: code, Severity: codes[i].Severity, Tensor: tensor, Message: fmt.Sprintf(format, args...)})
	return &r.Findings[len(r.Findings)-1]
}

// measured gives a finding its numbers. A limit that is NaN is none.
func (f *Finding) measured(value, limit float64) {
	f.Value = &value
	if !math.IsNaN(limit) {
		f.Limit = &limit
	}
}

// begin notes that a family is run.
func (r *Report) begin(family string) { r.Families = append(r.Families, family) }

// Codes returns all codes, family by family.
func Codes() []Code { return slices.Clone(codes) }

// Options bounds the work of the checks.
type Options struct {
	Engine engine.Options
	// HeadersOnly leaves out what has to read weights.
	HeadersOnly bool
}
