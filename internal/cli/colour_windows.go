package cli

import (
	"os"

	"golang.org/x/sys/windows"
)

// understandsColour switches a console of Windows to escape sequences; those before
// Windows 10 have none.
func understandsColour(f *os.File) bool {
	h := windows.Handle(f.Fd())
	var mode uint32
	if windows.GetConsoleMode(h, &mode) != nil {
		return false
	}
	return windows.SetConsoleMode(h, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
