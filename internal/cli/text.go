package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// The rules of output. Standard output carries the result only: a path, a
// table, or one JSON document. All else goes to standard error, in lines that
// begin with "loratool:" or "hint:", or that are JSON objects with --json. Text
// from an input never reaches a terminal with a control character in it.

// stickyWriter remembers the first failure of its writer, so that printing
// needs no checks.
type stickyWriter struct {
	w   io.Writer
	err error
}

func (s *stickyWriter) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	var n int
	n, s.err = s.w.Write(p)
	return n, s.err
}

// failure is nil for a reader that has seen enough.
func (s *stickyWriter) failure() error {
	if errors.Is(s.err, syscall.EPIPE) {
		return nil
	}
	return fmt.Errorf("printing the result: %w", s.err)
}

// noteJSON is a note for programs.
type noteJSON struct {
	Type    string `json:"message_type"`
	Message string `json:"message"`
}

// note prints a message that is not the result.
func (a *App) note(format string, args ...any) {
	message := oneLine(fmt.Sprintf(format, args...))
	switch {
	case a.quiet:
	case a.json:
		a.jsonLine(noteJSON{"note", message})
	case strings.HasPrefix(message, "warning:"):
		a.say(caution, "loratool: warning:", strings.TrimPrefix(message, "warning: "))
	default:
		fmt.Fprintf(a.Stderr, "loratool: %s\n", message)
	}
}

// say prints a line to stderr whose first words stand out.
func (a *App) say(s style, first, rest string) {
	fmt.Fprintf(a.Stderr, "%s %s\n", a.paletteOf(a.Stderr).paint(s, first), rest)
}

// noteStop makes a signal known at once. The function it returns waits until
// that is said, so that nothing comes after the error.
func (a *App) noteStop(ctx context.Context) (settle func()) {
	said := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(said)
		a.note("stopping; another signal ends at once and leaves the partial output behind")
	})
	return func() {
		if !cancel() {
			<-said
		}
	}
}

// printJSON prints the one document of a command.
func (a *App) printJSON(doc any) {
	a.out.Write(encodeJSON(doc, "  ")) // its failure stays with the writer
}

// jsonLine prints a message for programs.
func (a *App) jsonLine(doc any) { a.Stderr.Write(encodeJSON(doc, "")) }

// encodeJSON escapes what does not print, so that a document is harmless on a
// terminal too.
func encodeJSON(doc any, indent string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	e.SetEscapeHTML(false)
	if err := e.Encode(doc); err != nil {
		panic(err) // a document is made of what can be encoded
	}
	var escaped []byte
	for _, r := range b.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			escaped = utf8.AppendRune(escaped, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			escaped = fmt.Appendf(escaped, `\u%04x\u%04x`, high, low)
		default:
			escaped = fmt.Appendf(escaped, `\u%04x`, r)
		}
	}
	return escaped
}

// number is a figure in a document: null if it is not finite, which JSON has
// no word for.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if f := float64(n); math.IsNaN(f) || math.IsInf(f, 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

// oneLine makes text from an input harmless: no line breaks, no control
// characters, no marks that reorder text on a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		}
		return unicode.ReplacementChar
	}, s)
}
