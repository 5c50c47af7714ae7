//go:build !cgo

package main

var _ = thisProgramNeedsCgoAndACompiler // undefined, so that the error says so
