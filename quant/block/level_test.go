package block

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/internal/kernel"
)

// vectorCodecs are the codecs of which kernels take over a part.
var vectorCodecs = []struct {
	Codec
	size int
}{{f16{}, 2}, {bf16{}, 2}, {f32{}, 4}, {f8e4m3{}, 1}, {f8e5m2{}, 1}}

// eachFastLevel runs a test at every level but generic, which is the judge.
func eachFastLevel(t *testing.T, test func(t *testing.T)) {
	before := kernel.Level()
	t.Cleanup(func() { use(t, before) })
	for _, name := range kernel.Levels()[1:] {
		t.Run(name, func(t *testing.T) {
			use(t, name)
			test(t)
		})
	}
}

func use(t testing.TB, name string) {
	t.Helper()
	if err := kernel.Use(name); err != nil {
		t.Fatal(err)
	}
}

// sameDecoding and sameEncoding compare the level in use with generic.
func sameDecoding(t testing.TB, c Codec, got, want []float32, src []byte) {
	t.Helper()
	fast := kernel.Level()
	c.Decode32(got, src)
	use(t, "generic")
	c.Decode32(want, src)
	use(t, fast)
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s of %d at %s: element %d is %x, want %x", c.DType(), len(got), fast, i, math.Float32bits(got[i]), math.Float32bits(want[i]))
		}
	}
}

func sameEncoding(t testing.TB, c Codec, got, want []byte, src []float32) {
	t.Helper()
	fast := kernel.Level()
	c.Encode32(got, src)
	use(t, "generic")
	c.Encode32(want, src)
	use(t, fast)
	if bytes.Equal(got, want) {
		return
	}
	size := len(got) / len(src)
	for i, x := range src {
		if !bytes.Equal(got[i*size:][:size], want[i*size:][:size]) {
			t.Fatalf("%s of %d at %s: float32 %#x became % x, want % x", c.DType(), len(src), fast, math.Float32bits(x), got[i*size:][:size], want[i*size:][:size])
		}
	}
}

// TestLevelsDecode compares all codes of the narrow types, each in every lane of a
// vector.
func TestLevelsDecode(t *testing.T) {
	eachFastLevel(t, func(t *testing.T) {
		for _, c := range vectorCodecs {
			count := min(1<<(8*c.size), 1<<16)
			src := make([]byte, c.size*(count+16))
			for i := range count + 16 {
				switch c.size {
				case 1:
					src[i] = byte(i)
				case 2:
					binary.LittleEndian.PutUint16(src[2*i:], uint16(i))
				case 4:
					binary.LittleEndian.PutUint32(src[4*i:], uint32(i)*0x10001)
				}
			}
			got, want := make([]float32, count), make([]float32, count)
			for lane := range 16 {
				sameDecoding(t, c.Codec, got, want, src[lane*c.size:][:count*c.size])
			}
		}
	})
}

// TestLevelsEncode compares patterns of float32 in steps, and all signs and
// exponents with the fractions at which rounding changes its mind.
func TestLevelsEncode(t *testing.T) {
	eachFastLevel(t, func(t *testing.T) {
		for _, c := range vectorCodecs {
			const block = 1 << 15
			var src []float32
			got, want := make([]byte, block*c.size), make([]byte, block*c.size)
			flush := func() {
				sameEncoding(t, c.Codec, got[:len(src)*c.size], want[:len(src)*c.size], src)
				src = src[:0]
			}
			add := func(bits uint32) {
				if src = append(src, math.Float32frombits(bits)); len(src) == block {
					flush()
				}
			}
			eachFloat32(add)
			for top := range uint32(1 << 9) {
				for shift := range 23 {
					for _, kept := range []uint32{0, 1, 2, 3, 1<<23>>shift - 1} {
						for _, near := range []uint32{0, 1, 1<<23 - 1} {
							tie := (kept<<1 | 1) << shift >> 1 // halfway between kept and the next
							add(top<<23 | (tie+near)&(1<<23-1))
							add(top<<23 | near)
						}
					}
				}
			}
			flush()
		}
	})
}

// TestLevelsLengths compares all lengths up to 257 at odd addresses between
// canaries.
func TestLevelsLengths(t *testing.T) {
	eachFastLevel(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(8, 9))
		for _, c := range vectorCodecs {
			for n := range 258 {
				const margin = 67
				data, numbers := make([]byte, n*c.size+2*margin), make([]float32, n+2*margin)
				for i := range data {
					data[i] = 0xa5
				}
				for i := range numbers {
					numbers[i] = -12345
				}
				inside, floats := data[margin:][:n*c.size], numbers[margin:][:n]
				for i := range inside {
					inside[i] = byte(rng.Uint32())
				}
				sameDecoding(t, c.Codec, floats, make([]float32, n), inside)
				for i := range floats {
					floats[i] = math.Float32frombits(rng.Uint32())
				}
				sameEncoding(t, c.Codec, inside, make([]byte, len(inside)), floats)
				for i, b := range data {
					if (i < margin || i >= margin+len(inside)) && b != 0xa5 {
						t.Fatalf("%s: wrote at byte %d of %d", c.DType(), i-margin, len(inside))
					}
				}
				for i, x := range numbers {
					if (i < margin || i >= margin+n) && x != -12345 {
						t.Fatalf("%s: wrote at number %d of %d", c.DType(), i-margin, n)
					}
				}
			}
		}
	})
}

// TestLevelsLarge compares conversions whose results go past the caches, to an
// address that allows it and to one that does not.
func TestLevelsLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("needs 200 MiB")
	}
	const count = 16<<20 + 77
	codes, want := make([]byte, 2*count+2), make([]byte, 2*count)
	numbers, wide := make([]float32, count+1), make([]float32, count)
	for i := range count {
		numbers[i] = math.Float32frombits(uint32(i) * 2654435761)
	}
	eachFastLevel(t, func(t *testing.T) {
		for _, c := range vectorCodecs {
			if c.size == 4 {
				continue
			}
			for odd := range 2 {
				sameEncoding(t, c.Codec, codes[odd*c.size:][:c.size*count], want[:c.size*count], numbers[:count])
				n := count / 2
				sameDecoding(t, c.Codec, wide[odd:][:n], numbers[odd:][:n], codes[:n*c.size])
				for i := range count {
					numbers[i] = math.Float32frombits(uint32(i) * 2654435761)
				}
			}
		}
	})
}

// FuzzLevels compares arbitrary bytes, as codes and as numbers.
func FuzzLevels(f *testing.F) {
	f.Add([]byte("bytes of sixteen codes and a few, and one more"))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = data[:len(data)&^3]
		numbers := make([]float32, len(data)/4)
		for i := range numbers {
			numbers[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		before := kernel.Level()
		t.Cleanup(func() { use(t, before) })
		for _, name := range kernel.Levels()[1:] {
			use(t, name)
			for _, c := range vectorCodecs {
				n := len(data) / c.size
				sameDecoding(t, c.Codec, make([]float32, n), make([]float32, n), data)
				if len(numbers) > 0 {
					sameEncoding(t, c.Codec, make([]byte, len(numbers)*c.size), make([]byte, len(numbers)*c.size), numbers)
				}
			}
		}
	})
}

// BenchmarkLevels measures the conversions in cache and in memory next to a copy
// that reads and writes as many bytes as those of 16 bits; BenchmarkOverCopy compares.
func BenchmarkLevels(b *testing.B) {
	before := kernel.Level()
	b.Cleanup(func() { use(b, before) })
	for _, count := range []int{1 << 14, 1 << 24} {
		numbers, data := make([]float32, count), make([]byte, 4*count)
		for i := range numbers {
			numbers[i] = float32(i%1000) * 1e-4
		}
		for _, name := range kernel.Levels() {
			for _, c := range vectorCodecs {
				codes := data[:c.size*count]
				run := func(way string, call func()) {
					b.Run(fmt.Sprintf("%s/%s/%s/%d", c.DType(), way, name, count), func(b *testing.B) {
						use(b, name)
						b.SetBytes(int64(count * (4 + c.size)))
						for b.Loop() {
							call()
						}
					})
				}
				run("encode", func() { c.Encode32(codes, numbers) })
				run("decode", func() { c.Decode32(numbers, codes) })
			}
		}
		other := make([]byte, 3*count)
		b.Run(fmt.Sprintf("copy/runtime/%d", count), func(b *testing.B) {
			b.SetBytes(int64(6 * count))
			for b.Loop() {
				copy(other, data)
			}
		})
	}
}
