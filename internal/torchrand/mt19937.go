package torchrand

// mt19937 is the 32-bit Mersenne Twister of Matsumoto and Nishimura (2002 code,
// init_genrand), the engine of torch's CPU generator and of C++ std::mt19937.
type mt19937 struct {
	state [stateSize]uint32
	used  int // words of state already given out
}

const (
	stateSize = 624
	shiftSize = 397
	matrixA   = 0x9908b0df
	upperMask = 1 << 31
)

func (m *mt19937) seed(seed uint32) {
	m.state[0] = seed
	for i := uint32(1); i < stateSize; i++ {
		previous := m.state[i-1]
		m.state[i] = 1812433253*(previous^previous>>30) + i
	}
	m.used = stateSize
}

// next returns the next 32 bits.
func (m *mt19937) next() uint32 {
	if m.used == stateSize {
		m.renew()
	}
	y := m.state[m.used]
	m.used++
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	y ^= y >> 18
	return y
}

func (m *mt19937) renew() {
	for i := range m.state {
		following := m.state[(i+1)%stateSize]
		y := m.state[i]&upperMask | following&^upperMask
		twisted := y >> 1
		if following&1 == 1 {
			twisted ^= matrixA
		}
		m.state[i] = m.state[(i+shiftSize)%stateSize] ^ twisted
	}
	m.used = 0
}
