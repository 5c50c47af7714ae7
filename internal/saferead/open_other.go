//go:build !unix

package saferead

const openFlags = 0
