//go:build !amd64 || noasm

package kernel

func bestLevel() level { return generic }
