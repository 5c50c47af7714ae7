package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/report"
)

// pageFlag is --report of a command: where its page goes.
type pageFlag struct {
	path  string
	force *bool
}

func (p *pageFlag) register(set *pflag.FlagSet, force *bool) {
	p.force = force
	set.StringVar(&p.path, "report", "", "write a page with pictures to `FILE`: one HTML file that fetches nothing")
}

// registerForce is for commands that have no output to force.
func (p *pageFlag) registerForce(set *pflag.FlagSet) {
	p.register(set, new(bool))
	set.BoolVarP(p.force, "force", "f", false, "replace an existing report")
}

// refusal says why the page can't be written. It is asked before the work; outputs are
// what the command writes besides.
func (p *pageFlag) refusal(a *App, inputs []string, outputs ...string) error {
	if p == nil || p.path == "" {
		return nil
	}
	for _, output := range outputs {
		if inside, err := isWithin(p.path, output); err != nil || inside {
			return errors.Join(err, usagef("--report: %q is in the output %q; it goes beside it", p.path, output))
		}
	}
	err := fsatomic.Check(a.FS, p.path, fsatomic.KindFile, true)
	if errors.Is(err, fs.ErrNotExist) {
		return &hinted{fmt.Errorf("--report: %w", err), "mkdir -p " + filepath.Dir(filepath.Clean(p.path))}
	}
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	if err := fsatomic.CheckInputs(a.FS, p.path, inputs...); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	if err := fsatomic.Check(a.FS, p.path, fsatomic.KindFile, *p.force); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	return nil
}

// isWithin reports whether a path is a folder or lies in it, by name.
func isWithin(path, dir string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return false, err
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)), nil
}

// write writes the page, if one was asked for. The page appears whole or not at all.
func (p *pageFlag) write(a *App, make func() *report.Page) error {
	if p == nil || p.path == "" {
		return nil
	}
	page := make()
	page.Version = buildVersion()
	data, err := page.Encode()
	if err == nil {
		err = a.writeFile(p.path, data, *p.force)
	}
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	return nil
}

// writeFile makes a file that appears whole.
func (a *App) writeFile(path string, data []byte, force bool) error {
	out, err := fsatomic.New(a.FS, path, fsatomic.KindFile, force)
	if err != nil {
		return err
	}
	file, err := out.Create("", int64(len(data)))
	if err == nil {
		_, err = file.WriteAt(data, 0)
	}
	if err != nil {
		return errors.Join(err, out.Abort())
	}
	return a.noteCleanup(out.Commit())
}

// inputsOf lists opened models for a page.
func inputsOf(roles []string, models []*checkpoint.Model) []report.Input {
	var list []report.Input
	for i, m := range models {
		size := int64(0)
		for _, s := range m.Specs() {
			size += describeTensor(m, s).stored()
		}
		in := report.Input{Role: roles[min(i, len(roles)-1)], Path: m.Path, Detail: fmt.Sprintf("%s, %s", countOf(len(m.Specs()), "tensor"), formatSize(size))}
		if m.Commit != "" {
			in.Detail += ", revision " + m.Commit
		}
		list = append(list, in)
	}
	return list
}

// stored is how many bytes a tensor takes in its file.
func (t inspectTensor) stored() int64 {
	if t.Stored != nil {
		return t.Stored.Bytes
	}
	return t.Bytes
}

// hashedInputs lists the files that were read, as the documents of results do.
func hashedInputs(hashes map[string]string) []report.Input {
	var list []report.Input
	for _, name := range slices.Sorted(maps.Keys(hashes)) {
		role, file, ok := strings.Cut(name, "/")
		if !ok {
			role, file = "", name
		}
		list = append(list, report.Input{Role: role, Path: file, SHA256: hashes[name]})
	}
	return list
}

// notesOf are the decisions of a plan.
func notesOf(decisions []decisionJSON) []string {
	var list []string
	for _, d := range decisions {
		list = append(list, d.Message+tensorList(d.Tensors))
	}
	return list
}

// fact is a figure on a page.
func fact(label, format string, args ...any) report.Fact {
	return report.Fact{Label: label, Value: fmt.Sprintf(format, args...)}
}

// shapeText writes a shape in a table.
func shapeText(shape []int64) report.Cell {
	parts := make([]string, len(shape))
	for i, n := range shape {
		parts[i] = fmt.Sprint(n)
	}
	return report.Text(strings.Join(parts, " × "))
}

// cellOf is a figure in a table.
func cellOf(n number) report.Cell { return report.Number(float64(n), "%.4g") }

// percentCell is a share in a table.
func percentCell(n number) report.Cell {
	return report.Cell{Text: survived(n), Number: true, Value: float64(n)}
}

// shareText is a share as a picture has it.
func shareText(v float64) string { return survived(number(v)) }

// countCell is a count in a table.
func countCell(n int64) report.Cell { return report.Number(float64(n), "%.0f") }
