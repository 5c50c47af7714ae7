package merge

import "testing"

// TestAdditiveOps guards that every operation that readers call additive can
// take an adapter's weight.
func TestAdditiveOps(t *testing.T) {
	for _, op := range []weighted{
		AddLoRA{Scale: 2}, AddExpertsLoRA{Scale: 2}, AddAdaLoRA{Scale: 2}, AddLoHa{Scale: 2}, AddLoKr{Scale: 2},
		AddVeRA{Weight: 2}, AddVector{Scale: 2}, AddLoRADifference{Scale: 2, StartScale: 4},
	} {
		switch op := op.times(-0.5).(type) {
		case AddLoRA:
			check(t, op, op.Scale, -1)
		case AddExpertsLoRA:
			check(t, op, op.Scale, -1)
		case AddAdaLoRA:
			check(t, op, op.Scale, -1)
		case AddLoHa:
			check(t, op, op.Scale, -1)
		case AddLoKr:
			check(t, op, op.Scale, -1)
		case AddVeRA:
			check(t, op, op.Weight, -1)
		case AddVector:
			check(t, op, op.Scale, -1)
		case AddLoRADifference:
			check(t, op, op.Scale, -1)
			check(t, op, op.StartScale, -2)
		default:
			t.Errorf("%T is another operation", op)
		}
	}
}

func check(t *testing.T, op any, got, want float64) {
	t.Helper()
	if got != want {
		t.Errorf("%T: scale %v, want %v", op, got, want)
	}
}

func TestRegion(t *testing.T) {
	r := Region{At: 4, From: 10, Rows: 3}
	for _, c := range []struct {
		row          int64
		rows         int
		band, own, n int
	}{
		{0, 4, 0, 0, 0}, {0, 5, 4, 10, 1}, {4, 3, 0, 10, 3}, {5, 9, 0, 11, 2}, {6, 1, 0, 12, 1}, {7, 9, 0, 0, 0}, {0, 99, 4, 10, 3}, {3, 2, 1, 10, 1}, {5, 1, 0, 11, 1}, {5, 0, 0, 0, 0},
	} {
		if band, own, n := r.in(c.row, c.rows); band != c.band || own != c.own || n != c.n {
			t.Errorf("in(%d, %d) is %d, %d, %d; want %d, %d, %d", c.row, c.rows, band, own, n, c.band, c.own, c.n)
		}
	}
}
