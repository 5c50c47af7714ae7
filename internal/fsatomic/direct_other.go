//go:build !linux

package fsatomic

import "os"

// Systems other than Linux write through the page cache.

func openPast(*os.File) *os.File { return nil }

func isNotDirect(error) bool { return false }

func startsPage([]byte) bool { return true }

func startWriteback(*os.File, int64, int64) {}

func reserve(*os.File, int64) error { return nil }
