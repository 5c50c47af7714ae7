package cli

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/loratool/loratool/verify"
)

type (
	verifyJSON struct {
		Schema   string        `json:"schema"`
		OK       bool          `json:"ok"`
		Findings []findingJSON `json:"findings"`
		Summary  verifySummary `json:"summary"`
	}
	findingJSON struct {
		Code     string  `json:"code"`
		Severity string  `json:"severity"`
		Tensor   string  `json:"tensor"`
		Message  string  `json:"message"`
		Value    *number `json:"value"`
		Limit    *number `json:"limit"`
	}
	verifySummary struct {
		Path       string           `json:"path"`
		Families   []string         `json:"families"`
		Tensors    int              `json:"tensors"`
		Errors     int              `json:"errors"`
		Warnings   int              `json:"warnings"`
		Infos      int              `json:"infos"`
		Merge      *mergedJSON      `json:"merge,omitempty"`
		LoftQ      *loftqJSON       `json:"loftq,omitempty"`
		Quantized  *quantErrorsJSON `json:"quantized,omitempty"`
		Conversion *conversionJSON  `json:"conversion,omitempty"`
		Function   *functionJSON    `json:"function,omitempty"`
		Output     *logitsOfJSON    `json:"end_to_end,omitempty"`
	}
	loftqJSON struct {
		Quantized number            `json:"quantized_error"` // ||W - Q|| / ||W||
		Repaired  number            `json:"repaired_error"`  // ||W - Q - s·B·A|| / ||W||
		Modules   []loftqModuleJSON `json:"modules"`
	}
	loftqModuleJSON struct {
		Tensor     string  `json:"tensor"`
		Shape      []int64 `json:"shape"`
		Rank       int64   `json:"rank"`
		Stored     string  `json:"stored"`
		Quantized  number  `json:"quantized_error"`
		Repaired   number  `json:"repaired_error"`
		Attainable number  `json:"attainable_error"`
		Scale      number  `json:"scale"`
		BestScale  number  `json:"best_scale"`
	}
	quantErrorsJSON struct {
		Error   number           `json:"relative_error"` // ||W - Q|| / ||W|| over all of them
		Tensors []quantErrorJSON `json:"tensors"`
	}
	quantErrorJSON struct {
		Tensor string  `json:"tensor"`
		Shape  []int64 `json:"shape"`
		Type   string  `json:"type"`
		Error  number  `json:"relative_error"`
	}
	mergedJSON struct {
		Unchanged int    `json:"unchanged_tensors"`
		Changed   int    `json:"changed_tensors"`
		Values    int64  `json:"computed_values"`
		Nearest   int64  `json:"nearest_values"`
		DeltaNorm number `json:"delta_norm"`
		Survival  number `json:"delta_survival"`
	}
)

// describeFindings turns a report into its published form.
func describeFindings(path string, r *verify.Report, strict bool) verifyJSON {
	doc := verifyJSON{
		Schema: "loratool.verify/v1", OK: r.OK() && !(strict && r.Count(verify.Warning) > 0), Findings: []findingJSON{},
		Summary: verifySummary{
			Path: path, Families: append([]string{}, r.Families...), Tensors: r.Tensors,
			Errors: r.Count(verify.Error), Warnings: r.Count(verify.Warning), Infos: r.Count(verify.Info),
		},
	}
	for _, f := range r.Findings {
		doc.Findings = append(doc.Findings, findingJSON{
			f.Code, string(f.Severity), f.Tensor, oneLine(f.Message), (*number)(f.Value), (*number)(f.Limit),
		})
	}
	doc.Summary.LoftQ, doc.Summary.Quantized = describeLoftQ(r.LoftQ), describeQuantized(r.Quantized)
	doc.Summary.Output, doc.Summary.Conversion = describeOutput(r.Output), describeConversion(r.Conversion)
	doc.Summary.Function = describeFunction(r.Function)
	if m := r.Merge; m != nil {
		doc.Summary.Merge = &mergedJSON{m.Unchanged, m.Changed, m.Values, m.Nearest, number(m.DeltaNorm), number(m.Survival)}
	}
	return doc
}

func describeLoftQ(r *verify.LoftQResult) *loftqJSON {
	if r == nil {
		return nil
	}
	doc := &loftqJSON{Quantized: number(r.Quantized), Repaired: number(r.Repaired), Modules: []loftqModuleJSON{}}
	for _, m := range r.Modules {
		doc.Modules = append(doc.Modules, loftqModuleJSON{
			m.Tensor, shapeOf(m.Shape), m.Rank, m.Stored, number(m.Quantized), number(m.Repaired), number(m.Attainable),
			number(m.Scale), number(m.BestScale),
		})
	}
	return doc
}

func describeQuantized(r *verify.QuantizedFigures) *quantErrorsJSON {
	if r == nil {
		return nil
	}
	doc := &quantErrorsJSON{Error: number(r.Error), Tensors: []quantErrorJSON{}}
	for _, t := range r.Tensors {
		doc.Tensors = append(doc.Tensors, quantErrorJSON{t.Tensor, shapeOf(t.Shape), t.Kind, number(t.Error)})
	}
	return doc
}

func printFindingsJSON(w io.Writer, _ palette, doc verifyJSON) { w.Write(encodeJSON(doc, "  ")) } // w keeps its failure

// line is a finding in words: what it is about, and what is wrong.
func (f *findingJSON) line() string {
	if f.Tensor == "" {
		return f.Message
	}
	return oneLine(f.Tensor) + ": " + f.Message
}

// verdict sums the report up.
func (doc *verifyJSON) verdict() string {
	s := doc.Summary
	result := "ok"
	if !doc.OK {
		result = "not ok"
	}
	return fmt.Sprintf("%s: %s: %s, %s, %s; %s checked (%s)", oneLine(s.Path), result,
		countOf(s.Errors, "error"), countOf(s.Warnings, "warning"), countOf(s.Infos, "info"), countOf(s.Tensors, "tensor"), strings.Join(s.Families, ", "))
}

func countOf(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printFindings prints a report for people: errors first, findings of one code
// together, at most a few of each.
func printFindings(w io.Writer, p palette, doc verifyJSON) {
	const shown = 10
	for _, severity := range []verify.Severity{verify.Error, verify.Warning, verify.Info} {
		for _, code := range codesOf(doc.Findings, string(severity)) {
			fmt.Fprintf(w, "%s %s: %s\n", p.paint(styleOf[severity], string(severity)+":"), p.paint(strong, code), meaningOf(code))
			n := 0
			for _, f := range doc.Findings {
				if f.Code != code {
					continue
				}
				if n++; n <= shown {
					fmt.Fprintf(w, "  %s\n", f.line())
				}
			}
			if n > shown {
				fmt.Fprintf(w, "  and %d more; --json lists all\n", n-shown)
			}
		}
	}
	fmt.Fprintln(w, p.paint(doc.style(), doc.verdict()))
	if l := doc.Summary.LoftQ; l != nil {
		fmt.Fprintf(w, "loftq: the relative error of %s is %.4g quantized, %.4g with the pairs\n",
			countOf(len(l.Modules), "weight"), l.Quantized, l.Repaired)
	}
	if q := doc.Summary.Quantized; q != nil {
		fmt.Fprintf(w, "quantized: the relative error of %s is %.4g\n", countOf(len(q.Tensors), "weight"), q.Error)
	}
	doc.Summary.Conversion.print(w)
	doc.Summary.Function.print(w)
	doc.Summary.Output.print(w)
	if m := doc.Summary.Merge; m != nil {
		fmt.Fprintf(w, "merge: %d tensors are as in the base, %d changed; the change has norm %.4g and %s of it is there; %s of %d values are the nearest\n",
			m.Unchanged, m.Changed, m.DeltaNorm, survived(m.Survival), percent(number(m.Nearest)/number(max(m.Values, 1))), m.Values)
	}
}

// styleOf is how a severity stands out.
var styleOf = map[verify.Severity]style{verify.Error: bad, verify.Warning: caution, verify.Info: advice}

func (doc *verifyJSON) style() style {
	if doc.OK {
		return good
	}
	return bad
}

// codesOf lists the codes of a severity in the order of their first finding.
func codesOf(findings []findingJSON, severity string) []string {
	var codes []string
	seen := make(map[string]bool)
	for _, f := range findings {
		if f.Severity == severity && !seen[f.Code] {
			seen[f.Code] = true
			codes = append(codes, f.Code)
		}
	}
	return codes
}

func meaningOf(code string) string {
	for _, c := range verify.Codes() {
		if c.Name == code {
			return c.Meaning
		}
	}
	return code
}

// printAnnotations prints findings as commands of a GitHub workflow, which become
// notes on the run.
func printAnnotations(w io.Writer, _ palette, doc verifyJSON) {
	kinds := map[string]string{string(verify.Error): "error", string(verify.Warning): "warning", string(verify.Info): "notice"}
	for _, f := range doc.Findings {
		fmt.Fprintf(w, "::%s title=%s::%s\n", kinds[f.Severity], annotated(f.Code), annotated(f.line()))
	}
	fmt.Fprintln(w, doc.verdict())
}

// annotated escapes text of a workflow command; it has no line breaks any more.
func annotated(text string) string {
	return strings.NewReplacer("%", "%25", "::", "%3A%3A").Replace(text)
}

// printMarkdown writes the report as a section with a table.
func printMarkdown(w io.Writer, doc verifyJSON) {
	fmt.Fprintf(w, "### loratool verify\n\n%s\n\n", cell(doc.verdict()))
	if len(doc.Findings) == 0 {
		return
	}
	fmt.Fprint(w, "| severity | code | tensor | finding |\n| --- | --- | --- | --- |\n")
	for _, f := range doc.Findings {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", f.Severity, f.Code, cell(oneLine(f.Tensor)), cell(f.Message))
	}
	fmt.Fprintln(w)
}

// cell escapes what has a meaning in a table of Markdown, or in HTML.
func cell(text string) string {
	return strings.NewReplacer(`\`, `\\`, "|", `\|`, "<", "&lt;", ">", "&gt;", "&", "&amp;", "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`).Replace(text)
}

type (
	junitSuites struct {
		XMLName xml.Name     `xml:"testsuites"`
		Name    string       `xml:"name,attr"`
		Suites  []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		Failure *junitFailure `xml:"failure,omitempty"`
		Out     string        `xml:"system-out,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// printJUnit prints a suite for each family that was run, with a case for each of its
// codes: what was not found has passed.
func printJUnit(w io.Writer, _ palette, doc verifyJSON) {
	all := junitSuites{Name: "loratool verify"}
	for _, family := range doc.Summary.Families {
		suite := junitSuite{Name: family}
		for _, c := range verify.Codes() {
			if c.Family != family {
				continue
			}
			test := doc.junitCase(c)
			if test.Failure != nil {
				suite.Failures++
			}
			suite.Cases = append(suite.Cases, test)
		}
		suite.Tests = len(suite.Cases)
		all.Suites = append(all.Suites, suite)
	}
	fmt.Fprint(w, xml.Header)
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	e.Encode(all) // w keeps what goes wrong
	fmt.Fprintln(w)
}

func (doc *verifyJSON) junitCase(c verify.Code) junitCase {
	test := junitCase{Name: c.Name, Class: "loratool.verify." + c.Family}
	var lines []string
	for _, f := range doc.Findings {
		if f.Code == c.Name {
			lines = append(lines, f.line())
		}
	}
	text := strings.Join(lines, "\n")
	switch {
	case len(lines) == 0:
	case c.Severity == verify.Error || c.Severity == verify.Warning && !doc.OK && doc.Summary.Errors == 0:
		test.Failure = &junitFailure{Message: c.Meaning, Text: text}
	default:
		test.Out = string(c.Severity) + ": " + text
	}
	return test
}
