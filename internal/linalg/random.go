package linalg

// random is a fixed generator (splitmix64): the same numbers on every system
// and with every version of Go.
type random struct{ state uint64 }

func newRandom(seed uint64) *random { return &random{mix(seed ^ 0x6c6f7261746f6f6c)} }

// mix is the finalizer of splitmix64.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// next returns a number in [-1,1), a multiple of 2^-23.
func (r *random) next() float32 {
	r.state += 0x9e3779b97f4a7c15
	return float32(int32(mix(r.state)>>40)-1<<23) * 0x1p-23
}

// fill fills x.
func (r *random) fill(x []float32) {
	for i := range x {
		x[i] = r.next()
	}
}

// sign returns 1 or -1.
func (r *random) sign() float32 {
	if r.next() < 0 {
		return -1
	}
	return 1
}
