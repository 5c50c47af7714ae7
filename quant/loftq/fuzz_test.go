package loftq_test

import (
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/loratool/loratool/internal/linalg/linalgtest"
	"github.com/loratool/loratool/quant/loftq"
)

// FuzzSolve checks what every solution promises on weights of any shape whose elements
// span powers of two, repeat, or are zeros.
func FuzzSolve(f *testing.F) {
	f.Add(uint64(1), uint8(7), uint8(5), uint8(3), uint8(0), uint8(0), 1.0)
	f.Add(uint64(2), uint8(40), uint8(60), uint8(20), uint8(1), uint8(1), 0.25)
	f.Add(uint64(3), uint8(1), uint8(64), uint8(2), uint8(40), uint8(2), 16.0)
	f.Add(uint64(4), uint8(64), uint8(1), uint8(9), uint8(250), uint8(3), 1e-5)
	f.Add(uint64(5), uint8(30), uint8(30), uint8(30), uint8(90), uint8(13), 3.0)
	f.Add(uint64(6), uint8(20), uint8(50), uint8(4), uint8(3), uint8(30), 1.0)
	names := []string{"bnb-nf4", "nf2", "nf3", "nf4", "uniform2", "uniform3", "uniform4"}
	f.Fuzz(func(t *testing.T, seed uint64, rows, cols, rank, spread, variant uint8, scale float64) {
		if rows == 0 || cols == 0 || rank == 0 || rows > 64 || cols > 64 || rank > 70 {
			t.Skip()
		}
		out, in := int(rows), int(cols)
		source := linalgtest.NewSource(seed)
		w := make([]float32, out*in)
		for i := range w {
			v := source.Normal()
			if spread%2 == 0 {
				v = math.Round(v)
			}
			w[i] = float32(math.Ldexp(v, int(source.Uint64()%(1+uint64(spread)))-int(spread)/2))
		}
		q := quantizers[names[int(variant)%len(names)]]
		o := loftq.Options{Rank: int(rank), Iterations: 1 + int(variant)%3, Order: loftq.Order(variant / 8 % 2), Scale: scale}
		if variant/16%2 == 1 {
			o.Moments = moments(in, seed)
			o.Moments[0] = 1
		}
		r, err := loftq.Solve(t.Context(), w, out, in, q, o)
		if o.Validate(in) != nil {
			if err == nil {
				t.Fatal("options that make no sense were accepted")
			}
			t.Skip()
		}
		var far *loftq.ValueError
		if errors.As(err, &far) && float64(maxAbs(w))/scale > math.MaxFloat32/100 {
			t.Skip() // no adapter with this scale holds the product
		}
		if err != nil {
			t.Fatal(err)
		}
		// The pair is rounded once more after its iterate was judged, and as large as W - Q.
		pair := frobenius(residual(w, out, in, r, false, o.Moments)) / weightNorm(w, out, in, o.Moments)
		limit := roundoff * (4 + 2*float64(rank+3)*math.Sqrt(float64(rank))*pair)
		if best := r.Iterates[r.Kept].Repaired.Weighted; !(math.Abs(r.Error.Weighted-best) <= limit) && best != r.Error.Weighted {
			t.Errorf("error %v, iterate %d has %v", r.Error.Weighted, r.Kept, best)
		}
		for i, step := range r.Iterates {
			if step.Repaired.Weighted < r.Iterates[r.Kept].Repaired.Weighted {
				t.Errorf("iterate %d is better than the kept one", i)
			}
		}
		x := make([]float32, len(w))
		loftq.Shifted(x, w, out, in, r.Shift, 2)
		if !reflect.DeepEqual(roundTrip(t, q, x, out, in), r.Q) {
			t.Error("Q is not what the quantizer makes of the shifted weight")
		}
		for _, v := range append(append([]float32(nil), r.Factors.A.Data...), r.Factors.B.Data...) {
			if v-v != 0 {
				t.Fatal("the pair is not finite")
			}
		}
	})
}
