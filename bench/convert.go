package main

import (
	"fmt"
	"math/rand/v2"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/quant/block"
)

// conversionElements is the length of the arrays, far more than any cache holds.
const conversionElements = 1 << 24

// conversion is one direction of an element type, with copies that move as many bytes.
type conversion struct {
	name                   string
	moved                  int // bytes read and written
	run, copyByGo, copyByC func()
}

// conversions returns all of them on n numbers, on shared memory.
func conversions(n int) []conversion {
	x := normals(rand.New(rand.NewPCG(3, 3)), n)
	encoded := make([]byte, 2*n)
	from, to := make([]byte, 3*n), make([]byte, 3*n)
	for i := range from {
		from[i] = byte(i) // memory that was never written is one page of zeros
	}
	var all []conversion
	for _, dtype := range []tensor.DType{tensor.BF16, tensor.F16, tensor.F8E4M3, tensor.F8E5M2} {
		codec, ok := block.For(dtype)
		if !ok {
			panic(fmt.Sprintf("no codec of %v", dtype))
		}
		size := 2
		if dtype == tensor.F8E4M3 || dtype == tensor.F8E5M2 {
			size = 1
		}
		bytes := encoded[:size*n]
		moved := (4 + size) * n
		half := moved / 2
		c := conversion{
			name:     fmt.Sprintf("%v encode", dtype),
			moved:    moved,
			run:      func() { codec.Encode32(bytes, x) },
			copyByGo: func() { copy(to[:half], from[:half]) },
			copyByC:  func() { copyByC(to[:half], from[:half]) },
		}
		all = append(all, c)
		c.name, c.run = fmt.Sprintf("%v decode", dtype), func() { codec.Decode32(x, bytes) }
		all = append(all, c)
	}
	return all
}

// measureConvert compares conversions with copies that move as many bytes, in and out:
// that of Go and that of the C library.
func measureConvert(b *bench) ([]row, error) {
	var rows []row
	for _, c := range conversions(conversionElements) {
		costs, err := interleave(b.rounds,
			contender{threads: 1, run: c.run},
			contender{threads: 1, run: c.copyByGo},
			contender{threads: 1, run: c.copyByC})
		if err != nil {
			return rows, err
		}
		for i, name := range []string{"Go's copy", "C's memcpy"} {
			r := row{
				figure:    fmt.Sprintf("%s, %d Mi elements", c.name, conversionElements>>20),
				ours:      speed(float64(c.moved), cpuSeconds(costs[0]), "GB/s"),
				reference: fmt.Sprintf("%s %s", name, speed(float64(c.moved), cpuSeconds(costs[i+1]), "GB/s")),
				cpu:       cpuSeconds(costs[i+1]).over(cpuSeconds(costs[0])),
				wall:      wallSeconds(costs[i+1]).over(wallSeconds(costs[0])),
			}
			if i == 0 {
				r.goal = 0.85
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// measureNF4 compares the encoder with vectors with the portable one.
func measureNF4(b *bench) ([]row, error) {
	const blockSize = 64
	n := conversionElements
	x := normals(rand.New(rand.NewPCG(4, 4)), n)
	codes, absmax := make([]byte, n/2), make([]float32, n/blockSize)
	defer use(kernel.Level())
	encode := func(level string) contender {
		return contender{threads: 1, run: func() {
			use(level)
			kernel.EncodeFourBit(kernel.NF4, codes, absmax, x, blockSize)
		}}
	}
	levels := append(vectorLevels(), kernel.Levels()[0])
	contenders := make([]contender, len(levels))
	for i, level := range levels {
		contenders[i] = encode(level)
	}
	costs, err := interleave(b.rounds, contenders...)
	if err != nil {
		return nil, err
	}
	portable := costs[len(costs)-1]
	var rows []row
	for i, level := range vectorLevels() {
		rows = append(rows, row{
			figure:    fmt.Sprintf("NF4 encode, %d Mi elements, %s", n>>20, level),
			ours:      speed(float64(n), cpuSeconds(costs[i]), "Gelem/s"),
			reference: "portable Go " + speed(float64(n), cpuSeconds(portable), "Gelem/s"),
			cpu:       cpuSeconds(portable).over(cpuSeconds(costs[i])),
			wall:      wallSeconds(portable).over(wallSeconds(costs[i])),
			goal:      3,
		})
	}
	return rows, nil
}
