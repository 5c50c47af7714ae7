package loftq_test

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/loratool/loratool/quant/block"
	"github.com/loratool/loratool/quant/loftq"
)

// function is a quantizer.
type function func(dst, src []float32) error

func (f function) RoundTrip(dst, src []float32, _, _, _ int) error { return f(dst, src) }

// TestOptions guards that an option that makes no sense is named.
func TestOptions(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		want string
		o    loftq.Options
	}{
		{"rank", loftq.Options{}},
		{"rank", loftq.Options{Rank: -1}},
		{"rank", loftq.Options{Rank: 1<<16 + 1}},
		{"iterations", loftq.Options{Rank: 1, Iterations: -1}},
		{"iterations", loftq.Options{Rank: 1, Iterations: 1001}},
		{"order", loftq.Options{Rank: 1, Order: 2}},
		{"order", loftq.Options{Rank: 1, Order: -1}},
		{"scale", loftq.Options{Rank: 1, Scale: -1}},
		{"scale", loftq.Options{Rank: 1, Scale: nan}},
		{"scale", loftq.Options{Rank: 1, Scale: inf}},
		{"scale", loftq.Options{Rank: 1, Scale: 0x1p-41}},
		{"scale", loftq.Options{Rank: 1, Scale: 0x1p41}},
		{"threads", loftq.Options{Rank: 1, Threads: -1}},
		{"moments", loftq.Options{Rank: 1, Moments: []float64{1}}},
		{"moments", loftq.Options{Rank: 1, Moments: []float64{}}},
		{"moments", loftq.Options{Rank: 1, Moments: []float64{0, 0}}},
		{"moments", loftq.Options{Rank: 1, Moments: []float64{1, -1e-9}}},
		{"moments", loftq.Options{Rank: 1, Moments: []float64{nan, 1}}},
		{"moments", loftq.Options{Rank: 1, Moments: []float64{1, inf}}},
	} {
		_, err := loftq.Solve(t.Context(), []float32{1, 2}, 1, 2, nothing{}, c.o)
		var option *loftq.OptionError
		if !errors.As(err, &option) || option.Option != c.want {
			t.Errorf("%+v: %v, want an error about %s", c.o, err, c.want)
		}
	}
	var option *loftq.OptionError
	if _, err := loftq.NewFit(2, []float64{1, nan}); !errors.As(err, &option) {
		t.Errorf("a fit with moment NaN: %v", err)
	}
	for _, order := range []loftq.Order{loftq.QuantizeFirst, loftq.SVDFirst} {
		if got, ok := loftq.ParseOrder(order.String()); !ok || got != order {
			t.Errorf("%q is read as %v, %v", order, got, ok)
		}
	}
	if _, ok := loftq.ParseOrder("svd"); ok {
		t.Error(`"svd" is an order`)
	}
}

// TestBadNumbers guards that numbers that are not finite are named, in the weight and in
// what a quantizer makes of it, at any step.
func TestBadNumbers(t *testing.T) {
	const out, in = 20, 30
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		for _, place := range [][2]int{{0, 0}, {17, 5}, {19, 29}} {
			w := gaussian(out, in, 1)
			w[place[0]*in+place[1]] = bad
			_, err := loftq.Solve(t.Context(), w, out, in, nf4, loftq.Options{Rank: 2, Threads: 3})
			checkValueError(t, err, place, bad)
			for _, order := range []loftq.Order{loftq.QuantizeFirst, loftq.SVDFirst} {
				for calls := range 3 {
					q := function(func(dst, src []float32) error {
						for i := range dst {
							dst[i] = float32(math.Round(float64(src[i])))
						}
						if calls--; calls < 0 {
							dst[place[0]*in+place[1]] = bad
						}
						return nil
					})
					_, err := loftq.Solve(t.Context(), gaussian(out, in, 1), out, in, q, loftq.Options{Rank: 2, Order: order})
					checkValueError(t, err, place, bad)
				}
			}
		}
	}
}

func checkValueError(t *testing.T, err error, place [2]int, value float32) {
	t.Helper()
	var e *loftq.ValueError
	if !errors.As(err, &e) || e.Row != place[0] || e.Col != place[1] || math.Float32bits(e.Value) != math.Float32bits(value) {
		t.Errorf("%v, want %v at %v", err, value, place)
	}
}

// TestQuantizerFails guards that the error of a quantizer comes out, whichever call it is
// of, and that one which changes its mind is found: the weight must have two bits and a
// high rank for an iterate before the last to be the best.
func TestQuantizerFails(t *testing.T) {
	const out, in = 128, 128
	w := gaussian(out, in, 1)
	two := loftq.Normal{Bits: 2}
	o := loftq.Options{Rank: 32, Iterations: 8}
	r := solve(t, w, out, in, two, o)
	if r.Kept == 0 || r.Kept == o.Iterations {
		t.Fatalf("iterate %d is the best, which tests nothing", r.Kept)
	}
	broken := errors.New("broken")
	for last := range o.Iterations + 1 { // the last call brings back the best
		calls := 0
		q := function(func(dst, src []float32) error {
			if calls++; calls > last {
				return broken
			}
			return two.RoundTrip(dst, src, out, in, 1)
		})
		if _, err := loftq.Solve(t.Context(), w, out, in, q, o); !errors.Is(err, broken) || calls != last+1 {
			t.Errorf("the quantizer failed at call %d: %v after %d", last+1, err, calls)
		}
	}
	calls := 0
	fickle := function(func(dst, src []float32) error {
		err := two.RoundTrip(dst, src, out, in, 1)
		if calls++; calls > o.Iterations {
			dst[77] *= 1 + 0x1p-20
			dst[78]++
		}
		return err
	})
	_, err := loftq.Solve(t.Context(), w, out, in, fickle, o)
	var unstable *loftq.UnstableError
	if !errors.As(err, &unstable) || unstable.Iterate != r.Kept {
		t.Errorf("another Q for the same numbers: %v", err)
	}
}

// TestCancel guards that a cancelled solution stops before the next step.
func TestCancel(t *testing.T) {
	w := gaussian(40, 40, 1)
	for last := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		q := function(func(dst, src []float32) error {
			if calls++; calls > last {
				cancel()
			}
			return nf4.RoundTrip(dst, src, 40, 40, 1)
		})
		if _, err := loftq.Solve(ctx, w, 40, 40, q, loftq.Options{Rank: 2}); !errors.Is(err, context.Canceled) || calls != last+1 {
			t.Errorf("cancelled in call %d: %v after %d", last+1, err, calls)
		}
		cancel()
	}
}

// TestExtremes guards weights at the ends of float32.
func TestExtremes(t *testing.T) {
	const out, in = 24, 32
	for _, exponent := range []int{127, 100, -100, -126, -140} {
		w := gaussian(out, in, 1)
		largest := maxAbs(w)
		for i := range w {
			w[i] = float32(math.Ldexp(float64(w[i]/largest), exponent))
		}
		for name, q := range quantizers {
			r, err := loftq.Solve(t.Context(), w, out, in, q, loftq.Options{Rank: 4, Scale: 0.5})
			var far *loftq.RangeError
			if exponent == 127 && errors.As(err, &far) {
				continue // from one end of float32 to the other is too far for equal levels
			}
			if err != nil {
				t.Errorf("%s at 2^%d: %v", name, exponent, err)
				continue
			}
			if !(r.Error.Plain <= r.Baseline().Plain) || math.IsInf(r.Error.Plain, 0) {
				t.Errorf("%s at 2^%d: error %v, without a pair %v", name, exponent, r.Error.Plain, r.Baseline().Plain)
			}
		}
	}
}

// TestQuantizerOptions guards that a quantizer that does not exist is an error, and so is
// what the type can't hold, with its place in the whole weight.
func TestQuantizerOptions(t *testing.T) {
	w := gaussian(3, 64, 1)
	for _, q := range []loftq.Quantizer{
		loftq.Normal{Bits: 5}, loftq.Normal{}, loftq.Normal{Bits: 2, BlockSize: -1},
		loftq.Uniform{}, loftq.Uniform{Bits: 8},
		loftq.FourBit{BlockSize: 0}, loftq.FourBit{BlockSize: 3}, loftq.FourBit{BlockSize: -64},
		loftq.GGML{Type: block.Q4_K}, loftq.GGML{Type: block.Q4_0, Weights: []float32{1}},
	} {
		var option *loftq.OptionError
		if err := q.RoundTrip(make([]float32, len(w)), w, 3, 64, 1); !errors.As(err, &option) {
			t.Errorf("%+v: %v, want an error about an option", q, err)
		}
	}
	var kind *block.GGMLTypeError
	if err := (loftq.GGML{Type: block.Q8_1}).RoundTrip(make([]float32, len(w)), w, 3, 64, 1); !errors.As(err, &kind) {
		t.Errorf("a type that can't be written: %v", err)
	}
	w[2*64+40] = 1e30
	var value *block.GGMLValueError
	if err := (loftq.GGML{Type: block.Q8_0}).RoundTrip(make([]float32, len(w)), w, 3, 64, 2); !errors.As(err, &value) || value.Row != 2 || value.Column < 32 {
		t.Errorf("a number beyond the type: %v", err)
	}
	w[70] = float32(math.Inf(1))
	var number *loftq.ValueError
	if err := (loftq.Uniform{Bits: 2}).RoundTrip(make([]float32, len(w)), w, 3, 64, 2); !errors.As(err, &number) || number.Row != 1 || number.Col != 6 {
		t.Errorf("an infinity: %v", err)
	}
}

// TestMisuse guards that lengths that do not belong together panic.
func TestMisuse(t *testing.T) {
	w := make([]float32, 6)
	fit, err := loftq.NewFit(3, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(){
		"weight":      func() { _, _ = loftq.Solve(t.Context(), w, 2, 4, nothing{}, loftq.Options{Rank: 1}) },
		"no rows":     func() { _, _ = loftq.Solve(t.Context(), nil, 0, 4, nothing{}, loftq.Options{Rank: 1}) },
		"destination": func() { _ = nf4.RoundTrip(w[1:], w, 2, 3, 1) },
		"shifted":     func() { loftq.Shifted(w, w[1:], 2, 3, loftq.Factors{}, 1) },
		"fit":         func() { fit.Add(w, w, w[1:]) },
		"half a row":  func() { fit.Add(w[:4], w[:4], w[:4]) },
		"no channels": func() { _, _ = loftq.NewFit(0, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
