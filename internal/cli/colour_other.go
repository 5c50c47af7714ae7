//go:build !windows

package cli

import "os"

// understandsColour is true of any terminal that isn't dumb.
func understandsColour(*os.File) bool { return true }
