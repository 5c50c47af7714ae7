package cli_test

import (
	"encoding/json"
	"image"
	"image/color"
	_ "image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
)

// pages runs every command that has a report and returns its page.
func pages(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	base, lora := demo+"base", demo+"adapter"
	all := make(map[string]string)
	for _, c := range []struct {
		name string
		code int
		args []string
	}{
		{"merge", 0, mergeInto(at("merged"), "--verify")},
		{"verify", 0, []string{"verify", "--base", base, "--adapter", lora, "--merged", at("merged")}},
		{"verify-bad", 3, []string{"verify", "--base", base, "--adapter", lora, "--merged", base}},
		{"diff", 3, []string{"diff", base, at("merged")}},
		{"diff-same", 0, []string{"diff", base, base}},
		{"inspect", 0, []string{"inspect", base, "--stats"}},
		{"inspect-adapter", 0, []string{"inspect", lora, "--stats"}},
		{"extract", 0, []string{"extract", "--base", base, "--tuned", at("merged"), "-o", at("again"), "--rank", "4", "--merge-check"}},
		{"quantize", 0, []string{"quantize", base, "-o", at("nf4"), "--type", "nf4"}},
		{"verify-quantized", 0, []string{"verify", "--base", base, "--quantized", at("nf4")}},
		{"quantize-loftq", 0, []string{"quantize", base, "-o", at("q"), "--type", "nf4", "--loftq", "--adapter-out", at("pairs"), "--rank", "4"}},
		{"verify-loftq", 0, []string{"verify", "--loftq", base, at("q"), at("pairs")}},
		{"merge-nf4", 0, []string{"merge", "--base", base, "--adapter", lora, "-o", at("m4"), "--type", "nf4"}},
	} {
		page := at(c.name + ".html")
		code, _, stderr := run(fsatomic.OS{}, noEnv, append(c.args, "--report", page)...)
		if code != c.code {
			t.Fatalf("%s: exit %d, want %d: %s", c.name, code, c.code, stderr)
		}
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		all[c.name] = string(data)
	}
	return all
}

// TestPages looks at the page of every command: the verdict, what it was made from, and
// a mark for each tensor that the pictures should have.
func TestPages(t *testing.T) {
	all := pages(t)
	for name, want := range map[string]struct {
		texts                   []string
		heat, bars, lines, rows int // at least
	}{
		"merge":            {[]string{"Merged", "model-00001-of-00002.safetensors", "adapter_config.json"}, 28, 0, 0, 14},
		"merge-nf4":        {[]string{"Merged", ">nf4<"}, 28, 0, 0, 14},
		"verify":           {[]string{"No problems found"}, 14 + 21, 0, 0, 21},
		"verify-bad":       {[]string{"Problems found: 15 errors", "delta-missing", "adapter-missing", "it is the base, value by value"}, 14 + 14 + 21, 0, 0, 21},
		"diff":             {[]string{"Different", "0.7508", "129–256"}, 2 * 21, 15, 0, 14},
		"diff-same":        {[]string{"The same"}, 0, 0, 0, 0},
		"inspect":          {[]string{"21 tensors", "Effective rank"}, 21 + 16, 0, 16, 21},
		"inspect-adapter":  {[]string{"LORA", "Singular values of the changes"}, 14, 0, 14, 14},
		"extract":          {[]string{"Extracted", "merged back: relative error", "the adapter carries"}, 14, 0, 14, 14},
		"quantize":         {[]string{"Quantized", "0.0914", "4.845"}, 28, 0, 0, 14},
		"verify-quantized": {[]string{"No problems found", "0.0913"}, 14, 0, 0, 14},
		"quantize-loftq":   {[]string{"Quantized, with an adapter"}, 28, 0, 0, 14},
		"verify-loftq":     {[]string{"best scale"}, 28, 0, 0, 14},
	} {
		page, ok := all[name]
		if !ok {
			t.Errorf("%s has no page", name)
			continue
		}
		for _, text := range want.texts {
			if !strings.Contains(page, text) {
				t.Errorf("%s: the page does not say %q", name, text)
			}
		}
		for pattern, least := range map[string]int{`<rect class="cell q`: want.heat, `<rect class="bar"`: want.bars, `<polyline class="line`: want.lines, `<tr><td><code>`: want.rows} {
			if n := strings.Count(page, pattern); n < least {
				t.Errorf("%s: %d times %s, want %d", name, n, pattern, least)
			}
		}
	}
}

// TestPageRefused never destroys anything: a file that exists, an input, the output.
func TestPageRefused(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there.html")
	if err := os.WriteFile(there, []byte("mine"), 0o666); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "base")
	if err := os.CopyFS(copied, os.DirFS(demo+"base")); err != nil {
		t.Fatal(err)
	}
	before := contents(t, copied)
	out := filepath.Join(dir, "out")
	for _, c := range []struct {
		name string
		code int
		args []string
	}{
		{"exists", 5, []string{"verify", copied, "--report", there}},
		{"exists, of a merge", 5, mergeInto(out, "--report", there)},
		{"input", 5, []string{"verify", copied, "--report", filepath.Join(copied, "config.json"), "--force"}},
		{"in an input", 5, []string{"diff", copied, demo + "base", "--report", filepath.Join(copied, "new.html")}},
		{"in the output", 2, mergeInto(out, "--report", filepath.Join(out, "r.html"))},
		{"is the output", 2, mergeInto(out, "--report", out)},
		{"no folder", 1, []string{"inspect", copied, "--stats", "--report", filepath.Join(dir, "no", "r.html")}},
		{"no pictures", 2, []string{"inspect", copied, "--report", filepath.Join(dir, "r.html")}},
	} {
		if code, _, stderr := run(fsatomic.OS{}, noEnv, c.args...); code != c.code || !strings.Contains(stderr, "--report") {
			t.Errorf("%s: exit %d, want %d: %s", c.name, code, c.code, stderr)
		}
	}
	if data, err := os.ReadFile(there); err != nil || string(data) != "mine" {
		t.Errorf("the file that was there is %q, %v", data, err)
	}
	if after := contents(t, copied); len(after) != len(before) || after["config.json"] != before["config.json"] {
		t.Error("the input changed")
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("the merge was made, though its report is refused")
	}
	if code, _, stderr := run(fsatomic.OS{}, noEnv, "verify", copied, "--report", there, "--force"); code != 0 {
		t.Errorf("forced: exit %d: %s", code, stderr)
	}
}

// browser finds Chromium. Where tests must not be skipped (LORATOOL_TEST_CHROMIUM=required)
// its absence is a failure.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("LORATOOL_TEST_CHROMIUM") == "required" {
		t.Fatal("there is no Chromium")
	}
	t.Skip("there is no Chromium: pages are not looked at in a browser")
	return ""
}

// look opens a page and returns what is seen, the document after its script has run, and
// the addresses that the page asked for.
func look(t *testing.T, chromium, page string) (seen image.Image, dom string, fetched []string) {
	t.Helper()
	dir := t.TempDir()
	file, shot, log := filepath.Join(dir, "page.html"), filepath.Join(dir, "seen.png"), filepath.Join(dir, "net.json")
	if err := os.WriteFile(file, []byte(page), 0o666); err != nil {
		t.Fatal(err)
	}
	args := []string{"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-background-networking", "--disable-component-update",
		"--user-data-dir=" + filepath.Join(dir, "profile"), "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000", "--window-size=1200,3000"}
	shoot := exec.Command(chromium, append(args, "--log-net-log="+log, "--net-log-capture-mode=Everything", "--screenshot="+shot, "file://"+file)...)
	if out, err := shoot.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(chromium, append(args, "--dump-dom", "file://"+file)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(shot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if seen, _, err = image.Decode(f); err != nil {
		t.Fatal(err)
	}
	return seen, string(out), requests(t, log)
}

// requests lists what pages asked for. The browser also asks for things of its own; those
// have no origin.
func requests(t *testing.T, path string) (urls []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var log struct {
		Constants struct {
			Types map[string]int `json:"logEventTypes"`
		} `json:"constants"`
		Events []struct {
			Type   int `json:"type"`
			Params struct {
				URL       string `json:"url"`
				Initiator string `json:"initiator"`
			} `json:"params"`
		} `json:"events"`
	}
	if err := json.Unmarshal(data, &log); err != nil {
		t.Fatal(err)
	}
	start, ok := log.Constants.Types["URL_REQUEST_START_JOB"]
	if !ok {
		t.Fatal("the log of the browser has no requests")
	}
	for _, e := range log.Events {
		if e.Type == start && e.Params.URL != "" && e.Params.Initiator != "not an origin" {
			urls = append(urls, e.Params.URL)
		}
	}
	return urls
}

// pixels counts those of a colour.
func pixels(seen image.Image, is func(c color.RGBA) bool) (n int) {
	b := seen.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			if is(color.RGBAModel.Convert(seen.At(x, y)).(color.RGBA)) {
				n++
			}
		}
	}
	return n
}

// TestPagesInBrowser opens pages in Chromium: the pictures are there in their colours, the
// script has run under the page's policy, and nothing was fetched. A page that does fetch
// shows that this would be seen.
func TestPagesInBrowser(t *testing.T) {
	chromium := browser(t)
	all := pages(t)
	darkest := func(c color.RGBA) bool { return c == color.RGBA{0x1a, 0x26, 0x4b, 0xff} } // q9 of page.css
	bar := func(c color.RGBA) bool { return c == color.RGBA{0x3a, 0x74, 0x9c, 0xff} }     // q6
	line := func(c color.RGBA) bool {                                                     // l0 over white
		return c.R > 220 && c.G > 150 && c.G < 210 && c.B < 150
	}
	for _, c := range []struct {
		page string
		is   func(color.RGBA) bool
		want int // pixels: a cell has some 28 x 18, a bar of the largest bin some 50 x 200, a line 300 or more
	}{
		{"verify-bad", darkest, 14 * 300}, {"diff", darkest, 300}, {"diff", bar, 5000}, {"inspect-adapter", line, 300}, {"extract", line, 300}, {"quantize-loftq", darkest, 300},
	} {
		seen, dom, fetched := look(t, chromium, all[c.page])
		if n := pixels(seen, c.is); n < c.want {
			t.Errorf("%s: %d pixels of the picture's colour, want %d", c.page, n, c.want)
		}
		if len(fetched) > 0 {
			t.Errorf("%s: the page fetched %q", c.page, fetched)
		}
		if box := regexp.MustCompile(`<input type="search"[^>]*>`).FindString(dom); box == "" || strings.Contains(box, "hidden") {
			t.Errorf("%s: the script did not run: %q", c.page, box)
		}
	}
	const address = "https://example.invalid/pixel.png"
	evil := strings.Replace(regexp.MustCompile(`<meta http-equiv[^>]*>`).ReplaceAllString(all["diff"], ""), "<main>", `<main><img src="`+address+`">`, 1)
	if _, _, fetched := look(t, chromium, evil); len(fetched) != 1 || fetched[0] != address {
		t.Errorf("of a page that fetches %q was seen %q", address, fetched)
	}
	if _, _, fetched := look(t, chromium, strings.Replace(all["diff"], "<main>", `<main><img src="`+address+`">`, 1)); len(fetched) > 0 {
		t.Errorf("the policy of the page let it fetch %q", fetched)
	}
}
