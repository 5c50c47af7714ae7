package torchrand

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

type sequence struct {
	Seed  json.Number
	Draws []draw
}

type draw struct {
	Count, Rows, Cols   int
	From, To            string
	First, Last, SHA256 string
}

type vectors struct{ Uniform, Kaiming []sequence }

type vectorFile struct {
	Bounds       map[string]string
	Fused, Plain vectors
}

func readVectors(t *testing.T) vectorFile {
	t.Helper()
	data, err := os.ReadFile("testdata/uniform.json")
	if err != nil {
		t.Fatal(err)
	}
	var file vectorFile
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

func (f vectorFile) variants() map[Variant]vectors {
	return map[Variant]vectors{Fused: f.Fused, Plain: f.Plain}
}

// generator returns a generator for a seed as a Python script has it.
func (s sequence) generator(t *testing.T, v Variant) *Generator {
	t.Helper()
	seed, err := strconv.ParseUint(s.Seed.String(), 10, 64)
	if strings.HasPrefix(s.Seed.String(), "-") {
		var negative int64
		negative, err = s.Seed.Int64()
		seed = uint64(negative)
	}
	if err != nil {
		t.Fatal(err)
	}
	g := New(seed)
	g.Variant = v
	return g
}

// check compares numbers with the words that show where a difference is, and
// with the hash that covers all.
func (d draw) check(t *testing.T, got []float32) {
	t.Helper()
	first, last := words(got[:min(16, len(got))]), ""
	if len(got) > 16 {
		last = words(got[len(got)-16:])
	}
	if first != d.First || last != d.Last {
		t.Errorf("first %s\n want %s\n last %s\n want %s", first, d.First, last, d.Last)
	}
	var data []byte
	for _, x := range got {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != d.SHA256 {
		t.Errorf("%d numbers have another hash than torch's", len(got))
	}
}

func words(numbers []float32) string {
	var text []byte
	for _, x := range numbers {
		text = binary.BigEndian.AppendUint32(text, math.Float32bits(x))
	}
	return hex.EncodeToString(text)
}

// TestUniformTorch guards the numbers themselves: seeds of all kinds, sizes
// around those of vector registers and of the engine's state, several draws from
// one generator, and bounds whose numbers collide with the upper one.
func TestUniformTorch(t *testing.T) {
	for variant, v := range readVectors(t).variants() {
		if len(v.Uniform) < 10 {
			t.Fatalf("only %d sequences", len(v.Uniform))
		}
		for _, s := range v.Uniform {
			g := s.generator(t, variant)
			for _, d := range s.Draws {
				got := make([]float32, d.Count)
				g.Uniform(got, parseFloat(t, d.From), parseFloat(t, d.To))
				d.check(t, got)
			}
		}
	}
}

// TestKaimingTorch guards PEFT's projections: A, then B from the same generator.
func TestKaimingTorch(t *testing.T) {
	for variant, v := range readVectors(t).variants() {
		if len(v.Kaiming) < 2 {
			t.Fatalf("only %d sequences", len(v.Kaiming))
		}
		for _, s := range v.Kaiming {
			g := s.generator(t, variant)
			for _, d := range s.Draws {
				d.check(t, KaimingUniform(g, d.Rows, d.Cols))
			}
		}
	}
}

func TestKaimingBound(t *testing.T) {
	bounds := readVectors(t).Bounds
	if len(bounds) < 5 {
		t.Fatalf("only %d bounds", len(bounds))
	}
	for fan, bound := range bounds {
		fanIn, err := strconv.Atoi(fan)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := KaimingBound(fanIn), parseFloat(t, bound); got != want {
			t.Errorf("fan %d: %x, want %x", fanIn, got, want)
		}
	}
}

func TestKaimingEmpty(t *testing.T) {
	g := New(1)
	for _, shape := range [][2]int{{0, 5}, {5, 0}, {0, 0}, {-1, -1}} {
		if x := KaimingUniform(g, shape[0], shape[1]); len(x) != 0 {
			t.Errorf("%v: %d numbers", shape, len(x))
		}
	}
	if got, want := g.engine.next(), New(1).engine.next(); got != want {
		t.Errorf("empty matrices moved the generator: %d, want %d", got, want)
	}
}

// TestPieces guards that a tensor may be made in bands.
func TestPieces(t *testing.T) {
	whole := make([]float32, 2000)
	New(9).Uniform(whole, -1, 1)
	g := New(9)
	for from := 0; from < len(whole); {
		to := min(from+1+from/3, len(whole))
		piece := make([]float32, to-from)
		g.Uniform(piece, -1, 1)
		if words(piece) != words(whole[from:to]) {
			t.Fatalf("elements %d to %d differ", from, to)
		}
		from = to
	}
}

// TestEngine guards the engine by the number that the C++ standard demands of
// std::mt19937: the 10000th from seed 5489.
func TestEngine(t *testing.T) {
	var m mt19937
	m.seed(5489)
	for range 9999 {
		m.next()
	}
	if got, want := m.next(), uint32(4123659995); got != want {
		t.Errorf("10000th number %d, want %d", got, want)
	}
}

// TestUniformRange guards the half-open range where rounding reaches the bound.
func TestUniformRange(t *testing.T) {
	for _, variant := range []Variant{Fused, Plain} {
		g := New(1)
		g.Variant = variant
		x := make([]float32, 10_000)
		g.Uniform(x, 1, 1+0x1p-23)
		for i, v := range x {
			if v != 1 {
				t.Fatalf("number %d is %v, want 1", i, v)
			}
		}
	}
}

// TestFMA guards the single rounding against exact arithmetic. Addends are made
// to fall where two roundings go wrong: the sum lies next to the middle of two
// float32 numbers, by less than float64 shows.
func TestFMA(t *testing.T) {
	count := 300_000
	if testing.Short() {
		count = 20_000
	}
	rng := rand.New(rand.NewPCG(1, 2))
	twice := 0
	for i := range count {
		x := float32(rng.Uint32()&(1<<24-1)) * 0x1p-24
		y, z := anyFloat32(rng), anyFloat32(rng)
		switch i % 3 {
		case 1: // of the size of the product
			z = float32(-float64(x) * float64(y) * (1 + float64(rng.IntN(9)-4)*0x1p-24))
		case 2: // half the last place of z times 1-2^-2k, of which float64 drops the 2^-2k
			z = math.Float32frombits(uint32(rng.IntN(200)+50)<<23 | rng.Uint32()&(1<<23-1))
			half := float64(math.Nextafter32(z, float32(math.Inf(1)))-z) / 2
			tiny := math.Ldexp(1, -15-rng.IntN(9))
			x, y = float32(1-tiny), float32(half*(1+tiny))
			if rng.IntN(2) == 0 {
				y = -y
			}
			if rng.IntN(2) == 0 {
				y, z = -y, -z
			}
		}
		exact := new(big.Float).SetPrec(600).Mul(big.NewFloat(float64(x)), big.NewFloat(float64(y)))
		want, _ := exact.Add(exact, big.NewFloat(float64(z))).Float32()
		if got := fma(x, y, z); got != want {
			t.Fatalf("%x*%x+%x = %x, want %x", x, y, z, got, want)
		}
		if float32(float64(float64(x)*float64(y))+float64(z)) != want {
			twice++
		}
	}
	if twice < count/100 {
		t.Errorf("only %d of %d cases tell one rounding from two", twice, count)
	}
}

// anyFloat32 returns a finite number of any size.
func anyFloat32(rng *rand.Rand) float32 {
	for {
		x := math.Float32frombits(rng.Uint32())
		if x-x == 0 {
			return x
		}
	}
}

// FuzzFMA compares with exact arithmetic for any finite numbers that stay
// finite.
func FuzzFMA(f *testing.F) {
	f.Add(uint32(0x3f7fffff), uint32(0x33800001), uint32(0x3f800000))
	f.Add(uint32(0), uint32(0x80000000), uint32(0x80000000))
	f.Fuzz(func(t *testing.T, a, b, c uint32) {
		x, y, z := math.Float32frombits(a), math.Float32frombits(b), math.Float32frombits(c)
		if x-x != 0 || y-y != 0 || z-z != 0 {
			return
		}
		exact := new(big.Float).SetPrec(600).Mul(big.NewFloat(float64(x)), big.NewFloat(float64(y)))
		want, _ := exact.Add(exact, big.NewFloat(float64(z))).Float32()
		if got := fma(x, y, z); got != want {
			t.Fatalf("%x*%x+%x = %x, want %x", x, y, z, got, want)
		}
	})
}

func BenchmarkUniform(b *testing.B) {
	g, dst := New(1), make([]float32, 1<<16)
	b.SetBytes(int64(4 * len(dst)))
	for b.Loop() {
		g.Uniform(dst, -1, 1)
	}
}

func parseFloat(t *testing.T, text string) float64 {
	t.Helper()
	x, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return x
}
