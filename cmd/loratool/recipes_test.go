package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// step is a step of a workflow or of a composite action, as far as it is looked at.
type step struct {
	ID, Name, Uses, Run, Shell string
	With, Env                  map[string]any
}

// action is action.yml.
type action struct {
	Inputs  map[string]struct{ Default string }
	Outputs map[string]struct{ Value string }
	Runs    struct {
		Using string
		Steps []step
	}
}

func needBash(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the recipes are for shells of other systems")
	}
}

func repository(t *testing.T, parts ...string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(append([]string{"..", ".."}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func readYAML(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := yaml.Unmarshal(data, v); err != nil {
		t.Fatalf("%v:\n%s", err, data)
	}
}

// models is a folder with the sample's base and adapter.
func models(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(repository(t, "testdata", "demo"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// shell runs a script as a runner does and returns its exit status and what it printed.
func shell(t *testing.T, dir, script string, env ...string) (int, string) {
	t.Helper()
	cmd := exec.Command("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// succeeds runs a script that must.
func succeeds(t *testing.T, dir, script string, env ...string) string {
	t.Helper()
	code, out := shell(t, dir, script, env...)
	if code != 0 {
		t.Fatalf("%s: exit %d\n%s", script, code, out)
	}
	return out
}

func fileText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestAction runs the steps of action.yml as they are, with the variables of a runner: the
// binary is built, and a check leaves annotations, a summary, a page and the exit status.
func TestAction(t *testing.T) {
	needBash(t)
	var a action
	readYAML(t, []byte(fileText(t, repository(t, "action.yml"))), &a)
	if a.Runs.Using != "composite" || len(a.Runs.Steps) != 3 || !strings.HasPrefix(a.Runs.Steps[0].Uses, "actions/setup-go@") {
		t.Fatalf("action.yml: %+v", a.Runs)
	}
	install, check := a.Runs.Steps[1], a.Runs.Steps[2]
	if install.Shell != "bash" || check.Shell != "bash" || a.Outputs["report"].Value != "${{ steps."+check.ID+".outputs.report }}" {
		t.Errorf("action.yml: %+v %+v", install, check)
	}
	for name, input := range map[string]string{"LORATOOL_ARGS": "args", "LORATOOL_REPORT": "report"} {
		if _, ok := a.Inputs[input]; !ok || check.Env[name] != "${{ inputs."+input+" }}" {
			t.Errorf("%s is %v", name, check.Env[name])
		}
	}

	dir, temp := models(t), t.TempDir()
	env := []string{"RUNNER_TEMP=" + temp, "GITHUB_ACTION_PATH=" + repository(t)}
	for _, name := range []string{"GITHUB_PATH", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"} {
		env = append(env, name+"="+filepath.Join(temp, name))
	}
	succeeds(t, dir, install.Run, env...)
	bin := strings.TrimSpace(fileText(t, filepath.Join(temp, "GITHUB_PATH")))
	env = append(env, "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "LORATOOL_REPORT="+a.Inputs["report"].Default)
	succeeds(t, dir, "loratool merge --base base --adapter adapter -o 'mer ged' -q", env...)

	arguments := func(merged string) string {
		return "LORATOOL_ARGS=--base\nbase\n--adapter\nadapter\n--merged\n" + merged + "\n"
	}
	out := succeeds(t, dir, check.Run, append(slices.Clone(env), arguments("mer ged"))...)
	if !strings.Contains(out, "mer ged: ok: ") {
		t.Errorf("the check printed %q", out)
	}
	if got := fileText(t, filepath.Join(temp, "GITHUB_OUTPUT")); got != "report=loratool-report.html\n" {
		t.Errorf("the outputs are %q", got)
	}
	code, out := shell(t, dir, check.Run, append(env, arguments("base"))...)
	if code != 3 || !strings.Contains(out, "::error title=adapter-missing::") {
		t.Errorf("of the base: exit %d, printed %q", code, out)
	}
	if got := fileText(t, filepath.Join(temp, "GITHUB_STEP_SUMMARY")); strings.Count(got, "### loratool verify") != 2 || !strings.Contains(got, "adapter-missing") {
		t.Errorf("the summary is %q", got)
	}
	if got := fileText(t, filepath.Join(dir, "loratool-report.html")); !strings.Contains(got, "adapter-missing") {
		t.Error("the page does not show the finding")
	}
}

// fenced are the blocks of docs/scripting.md in a language, of the section on pipelines.
func fenced(t *testing.T, language string) []string {
	t.Helper()
	text := fileText(t, repository(t, "docs", "scripting.md"))
	_, text, _ = strings.Cut(text, "\n## In a pipeline\n")
	text, _, _ = strings.Cut(text, "\n## ")
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// TestRecipes runs the recipes of docs/scripting.md as they are written, but for lines that
// install and for the actions of others.
func TestRecipes(t *testing.T) {
	needBash(t)
	yamls, makefiles := fenced(t, "yaml"), fenced(t, "make")
	if len(yamls) != 2 || len(makefiles) != 1 {
		t.Fatalf("%d recipes in YAML, %d of make", len(yamls), len(makefiles))
	}
	t.Run("github", func(t *testing.T) {
		var w struct {
			Jobs map[string]struct{ Steps []step }
		}
		readYAML(t, []byte(yamls[0]), &w)
		var a action
		readYAML(t, []byte(fileText(t, repository(t, "action.yml"))), &a)
		dir, ran := models(t), 0
		for _, s := range w.Jobs["merge"].Steps {
			args, _ := s.With["args"].(string)
			switch {
			case s.Run != "":
				succeeds(t, dir, s.Run)
				ran++
			case args != "":
				if s.Uses != "loratool/loratool@main" {
					t.Errorf("arguments for %q", s.Uses)
				}
				succeeds(t, dir, a.Runs.Steps[2].Run, "LORATOOL_ARGS="+args, "LORATOOL_REPORT=page.html",
					"GITHUB_OUTPUT="+filepath.Join(dir, "output"), "GITHUB_STEP_SUMMARY="+filepath.Join(dir, "summary"))
				ran++
			}
		}
		if ran != 2 {
			t.Errorf("%d steps ran, want the merge and the check", ran)
		}
	})
	t.Run("gitlab", func(t *testing.T) {
		var w map[string]struct {
			Script    []string
			Artifacts struct {
				Paths   []string
				Reports struct{ JUnit string }
			}
		}
		readYAML(t, []byte(yamls[1]), &w)
		dir, job := models(t), w["merge"]
		for _, line := range job.Script {
			if !strings.Contains(line, "go install github.com/loratool/loratool/cmd/loratool@") {
				succeeds(t, dir, line)
			}
		}
		if page := fileText(t, filepath.Join(dir, job.Artifacts.Paths[0])); !strings.HasPrefix(page, "<!") {
			t.Error("the page is none")
		}
		if report := fileText(t, filepath.Join(dir, job.Artifacts.Reports.JUnit)); !strings.Contains(report, "<testsuites") {
			t.Error("the report is not JUnit's")
		}
	})
	t.Run("make", func(t *testing.T) {
		if _, err := exec.LookPath("make"); err != nil {
			t.Skip("there is no make")
		}
		dir := models(t)
		if err := os.WriteFile(filepath.Join(dir, "Makefile"), []byte(makefiles[0]), 0o666); err != nil {
			t.Fatal(err)
		}
		if out := succeeds(t, dir, "make check"); !strings.Contains(out, "merged: ok: ") {
			t.Errorf("make printed %q", out)
		}
		if out := succeeds(t, dir, "make check"); strings.Contains(out, "loratool merge") {
			t.Errorf("it was merged again: %q", out)
		}
		if code, out := shell(t, dir, "rm -r merged && cp -r base merged && make check"); code == 0 || !strings.Contains(out, "adapter-missing") {
			t.Errorf("of the base: exit %d, printed %q", code, out)
		}
	})
}
