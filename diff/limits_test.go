package diff_test

import (
	"math"
	"testing"

	"github.com/loratool/loratool/diff"
)

// TestLimits guards where limits end, element by element and for a whole tensor.
func TestLimits(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	up := func(x float32, n int) float32 {
		for range n {
			x = math.Nextafter32(x, inf)
		}
		return x
	}
	for _, c := range []struct {
		name   string
		a, b   float32
		limits diff.Limits
		within bool
	}{
		{"equal", 1, 1, diff.Limits{}, true},
		{"a neighbour is not equal", 1, up(1, 1), diff.Limits{}, false},
		{"the zeros have other bits", 0, float32(math.Copysign(0, -1)), diff.Limits{}, false},
		{"the zeros are one number", 0, float32(math.Copysign(0, -1)), diff.Limits{Abs: 1e-30}, true},
		{"at the absolute limit", 1, 1.25, diff.Limits{Abs: 0.25}, true},
		{"beyond the absolute limit", 1, 1.25, diff.Limits{Abs: math.Nextafter(0.25, 0)}, false},
		{"at the relative limit of the larger", 4, 3, diff.Limits{Rel: 0.25}, true},
		{"beyond the relative limit", 4, 3, diff.Limits{Rel: math.Nextafter(0.25, 0)}, false},
		{"at the relative limit, negative", -3, -4, diff.Limits{Rel: 0.25}, true},
		{"limits add up", 4, 2.5, diff.Limits{Rel: 0.25, Abs: 0.5}, true},
		{"steps", 1, up(1, 3), diff.Limits{ULP: 3}, true},
		{"one step too many", 1, up(1, 4), diff.Limits{ULP: 3}, false},
		{"steps across zero", up(0, 1), -up(0, 2), diff.Limits{ULP: 3}, true},
		{"steps across zero, one too many", up(0, 2), -up(0, 2), diff.Limits{ULP: 3}, false},
		{"steps or the absolute limit", 1, 1.25, diff.Limits{ULP: 1, Abs: 0.25}, true},
		{"the largest number and infinity", math.MaxFloat32, inf, diff.Limits{ULP: 1, Abs: 1e300, Rel: 1}, false},
		{"one infinity twice", inf, inf, diff.Limits{Abs: 1}, true},
		{"two infinities", inf, -inf, diff.Limits{Abs: 1, Rel: 1}, false},
		{"two NaNs of other bits", nan, -nan, diff.Limits{Abs: 1}, true},
		{"two NaNs of other bits, no limits", nan, -nan, diff.Limits{}, false},
		{"a NaN and a number", nan, 1, diff.Limits{Abs: 1e300}, false},
		{"a NaN and a number, error", nan, 1, diff.Limits{Error: 1e300}, false},
		{"an error binds no element", 3, 1, diff.Limits{Error: 1}, true},
		{"an error and a limit of elements", 3, 1, diff.Limits{Error: 1, Abs: 1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := new(folder), new(folder)
			// In company, so that the element is not the largest of its chunk.
			a.floats("w", []float32{1000, c.a, 7}, 3)
			b.floats("w", []float32{1000, c.b, 7}, 3)
			for _, swapped := range []bool{false, true} {
				ma, mb := a.write(t), b.write(t)
				if swapped {
					ma, mb = mb, ma
				}
				r := compare(t, ma, mb, diff.Options{Limits: c.limits})
				got := only(t, r)
				if r.Different == c.within {
					t.Errorf("different: %v (swapped: %v)", r.Different, swapped)
				}
				if beyond := got.Beyond > 0; beyond && got.First != 1 {
					t.Errorf("the first is element %d", got.First)
				}
			}
		})
	}
}

// TestErrorLimit guards the relative error: against the larger norm, at the limit and
// just beyond.
func TestErrorLimit(t *testing.T) {
	a, b := new(folder), new(folder)
	a.floats("w", []float32{3, 4, 0, 0}, 2, 2) // norm 5
	b.floats("w", []float32{3, 4, 0, 2}, 2, 2) // norm sqrt(29)
	want := 2 / math.Sqrt(29)
	ma, mb := a.write(t), b.write(t)
	for _, models := range [][2]int{{0, 1}, {1, 0}} {
		x, y := ma, mb
		if models[0] == 1 {
			x, y = mb, ma
		}
		got := only(t, compare(t, x, y, diff.Options{Limits: diff.Limits{Error: want * (1 + 1e-15)}}))
		// One division and one square root, each right to half a unit.
		if math.Abs(got.Relative()-want) > 0x1p-52 || got.Different {
			t.Errorf("relative error %v, want %v; different: %v", got.Relative(), want, got.Different)
		}
		if r := compare(t, x, y, diff.Options{Limits: diff.Limits{Error: want * (1 - 1e-14)}}); !r.Different {
			t.Error("an error beyond the limit")
		}
	}
}

// TestValidate guards options that make no sense.
func TestValidate(t *testing.T) {
	for _, l := range []diff.Limits{{Abs: -1}, {Rel: math.NaN()}, {Error: math.Inf(1)}} {
		if (diff.Options{Limits: l}).Validate() == nil {
			t.Errorf("%+v is accepted", l)
		}
	}
}
