//go:build unix

package saferead

import "syscall"

// openFlags keeps the open of a FIFO, put in place of the file after the first
// look, from waiting for a writer. Reads of regular files do not change.
const openFlags = syscall.O_NONBLOCK
