package engine

import (
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// TestFusedBytes guards that the budget counts what the fused kernel holds.
func TestFusedBytes(t *testing.T) {
	if got := new(kernel.Merger).Size(fusedRows, 0); got != fusedBytes {
		t.Errorf("a merger holds %d bytes, the budget counts %d", got, fusedBytes)
	}
}
