package cli

import (
	"io"
	"os"

	"golang.org/x/term"
)

// style is how a word stands out on a terminal: the parameters of ECMA-48's "select
// graphic rendition".
type style string

const (
	good    style = "32"   // green
	bad     style = "1;31" // bold red
	caution style = "33"   // yellow
	advice  style = "36"   // cyan
	strong  style = "1"    // bold
)

// palette says whether words are coloured. The words are the same without: colour never
// carries anything alone.
type palette bool

func (p palette) paint(s style, text string) string {
	if !p {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// paletteOf decides for what is written to w: colour on terminals only, none with
// --no-color, with NO_COLOR (https://no-color.org) or on a dumb terminal, and everywhere
// with CLICOLOR_FORCE, as for the logs of build machines.
func (a *App) paletteOf(w io.Writer) palette {
	if s, ok := w.(*stickyWriter); ok {
		w = s.w
	}
	force := a.Getenv("CLICOLOR_FORCE")
	switch {
	case a.json || a.noColor || a.Getenv("NO_COLOR") != "":
		return false
	case force != "" && force != "0":
		return true
	case a.Getenv("TERM") == "dumb":
		return false
	}
	f, ok := w.(*os.File)
	return palette(ok && term.IsTerminal(int(f.Fd())) && understandsColour(f))
}
