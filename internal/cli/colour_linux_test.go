package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal: what is written to tty is read from screen.
func terminal(t *testing.T) (screen, tty *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	t.Cleanup(func() { screen.Close() })
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return screen, tty
}

// TestColours: words are coloured on terminals only, and nowhere for those who ask for
// none.
func TestColours(t *testing.T) {
	const red, cyan = "\x1b[1;31m", "\x1b[36m"
	_, tty := terminal(t)
	pipe, into, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer into.Close()
	for _, c := range []struct {
		name    string
		w       io.Writer
		env     map[string]string
		flags   []string
		colours bool
	}{
		{"terminal", tty, nil, nil, true},
		{"terminal behind the writer of results", &stickyWriter{w: tty}, nil, nil, true},
		{"pipe", into, nil, nil, false},
		{"--no-color", tty, nil, []string{"--no-color"}, false},
		{"--json", tty, nil, []string{"--json"}, false},
		{"NO_COLOR", tty, map[string]string{"NO_COLOR": "1"}, nil, false},
		{"NO_COLOR that is empty", tty, map[string]string{"NO_COLOR": ""}, nil, true},
		{"dumb", tty, map[string]string{"TERM": "dumb"}, nil, false},
		{"forced", into, map[string]string{"CLICOLOR_FORCE": "1"}, nil, true},
		{"forced with 0", into, map[string]string{"CLICOLOR_FORCE": "0"}, nil, false},
		{"forced and forbidden", into, map[string]string{"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := &App{Getenv: func(name string) string { return c.env[name] }, out: &stickyWriter{w: io.Discard}}
			if err := app.newRoot().ParseFlags(c.flags); err != nil {
				t.Fatal(err)
			}
			if got := bool(app.paletteOf(c.w)); got != c.colours {
				t.Fatalf("colours %v, want %v", got, c.colours)
			}
		})
	}

	// A whole command: the error and its hint, as they come out of a terminal.
	screen, tty := terminal(t)
	app := &App{Stdout: io.Discard, Stderr: tty, Getenv: func(string) string { return "" }}
	app.Run(context.Background(), []string{"merg"})
	buf := make([]byte, 4096)
	n, err := screen.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	said := string(buf[:n])
	if !strings.HasPrefix(said, red+"loratool:\x1b[0m ") {
		t.Errorf("the error is %q", said)
	}
	for !strings.Contains(said, "hint:") && err == nil {
		n, err = screen.Read(buf)
		said += string(buf[:n])
	}
	if !strings.Contains(said, cyan+"hint:\x1b[0m ") {
		t.Errorf("the hint is %q", said)
	}
}
