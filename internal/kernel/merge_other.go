//go:build !amd64 || noasm

package kernel

// panels is never called without packed panels.
func (m *Merger) panels(b *band, i, n int) {}
