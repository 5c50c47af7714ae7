package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"

	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// factors is a product C = A*B, A m x k and B k x n.
type factors struct {
	m, n, k int
	a, b, c []float32
}

func newFactors(m, n, k int) factors {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	return factors{m, n, k, normals(rng, m*k), normals(rng, k*n), make([]float32, m*n)}
}

// normals returns standard normal numbers.
func normals(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// flops is the number of operations of one product.
func (f factors) flops() float64 { return 2 * float64(f.m) * float64(f.n) * float64(f.k) }

// ours multiplies with linalg at a level of the kernels.
func (f factors) ours(level string, threads int) contender {
	a, b, c := linalg.NewMatrix(f.m, f.k, f.a), linalg.NewMatrix(f.k, f.n, f.b), linalg.NewMatrix(f.m, f.n, f.c)
	return contender{threads: threads, run: func() {
		use(level)
		linalg.Gemm(1, a, b, 0, c, threads)
	}}
}

// openBLAS multiplies with OpenBLAS.
func (f factors) openBLAS(lib *openBLAS, threads int) contender {
	return contender{threads: threads, run: func() { lib.product(f.m, f.n, f.k, f.a, f.b, f.c, threads) }}
}

// gonum multiplies with gonum, which uses as many threads as Go has.
func (f factors) gonum(threads int) contender {
	a := blas32.General{Rows: f.m, Cols: f.k, Stride: f.k, Data: f.a}
	b := blas32.General{Rows: f.k, Cols: f.n, Stride: f.n, Data: f.b}
	c := blas32.General{Rows: f.m, Cols: f.n, Stride: f.n, Data: f.c}
	return contender{threads: 2, run: func() { // its goroutines are not on this thread: CPU time of the process
		before := runtime.GOMAXPROCS(threads)
		blas32.Gemm(blas.NoTrans, blas.NoTrans, 1, a, b, 0, c)
		runtime.GOMAXPROCS(before)
	}}
}

// use selects a level that Levels has named.
func use(level string) {
	if err := kernel.Use(level); err != nil {
		panic(err)
	}
}

// vectorLevels are the levels with vectors, the fastest first.
func vectorLevels() []string {
	levels := kernel.Levels()[1:]
	reversed := make([]string, 0, len(levels))
	for i := range levels {
		reversed = append(reversed, levels[len(levels)-1-i])
	}
	return reversed
}

// bestLevel is the fastest level of this build on this CPU, generic if there is no other.
func bestLevel() string {
	levels := kernel.Levels()
	return levels[len(levels)-1]
}

// sameLevel is the kind of CPU whose OpenBLAS kernels use the same instructions.
var sameLevel = map[string]string{"avx2": "Haswell"}

// measureGemm compares square products at every level with OpenBLAS as it is for this
// CPU, with its kernels of the same level, and with gonum.
func measureGemm(b *bench) ([]row, error) {
	native, err := b.blas.open("")
	if err != nil {
		return nil, err
	}
	goals := map[string]float64{"avx512": 0.85, "avx2": 0.75}
	f := newFactors(b.size, b.size, b.size)
	defer use(kernel.Level())
	var rows []row
	for _, threads := range []int{1, 2} {
		for _, level := range vectorLevels() {
			contenders := []contender{f.ours(level, threads), f.openBLAS(native, threads)}
			names := []string{"", "OpenBLAS " + native.core}
			if core := sameLevel[level]; core != "" {
				same, err := b.blas.open(core)
				if err != nil {
					return rows, err
				}
				contenders, names = append(contenders, f.openBLAS(same, threads)), append(names, "OpenBLAS "+same.core)
			}
			costs, err := interleave(b.rounds, contenders...)
			if err != nil {
				return rows, err
			}
			for i := 1; i < len(costs); i++ {
				r := f.compare(fmt.Sprintf("SGEMM %d³, %s", b.size, level), threads, costs[0], costs[i], names[i])
				if i == 1 {
					r.goal = goals[level]
				}
				rows = append(rows, r)
			}
		}
	}
	small := newFactors(b.size/4, b.size/4, b.size/4)
	best := bestLevel()
	costs, err := interleave(b.rounds, small.ours(best, 1), small.gonum(1))
	if err != nil {
		return rows, err
	}
	return append(rows, small.compare(fmt.Sprintf("SGEMM %d³, %s", small.m, best), 1, costs[0], costs[1], "gonum")), nil
}

// measureSketch compares the products of an iteration: the whole matrix times few vectors.
func measureSketch(b *bench) ([]row, error) {
	native, err := b.blas.open("")
	if err != nil {
		return nil, err
	}
	defer use(kernel.Level())
	level := bestLevel()
	var rows []row
	for _, threads := range []int{1, 2} {
		for _, width := range []int{64, 128, 266} {
			f := newFactors(b.size, width, b.size)
			costs, err := interleave(b.rounds, f.ours(level, threads), f.openBLAS(native, threads))
			if err != nil {
				return rows, err
			}
			r := f.compare(fmt.Sprintf("%d² by %d, %s", b.size, width, level), threads, costs[0], costs[1], "OpenBLAS "+native.core)
			r.goal = 0.9
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// compare makes the row of two sides.
func (f factors) compare(name string, threads int, ours, reference []cost, who string) row {
	time := cpuSeconds
	if threads > 1 {
		time = wallSeconds
	}
	return row{
		figure:    fmt.Sprintf("%s, %s", name, plural(threads)),
		ours:      speed(f.flops(), time(ours), "GFlop/s"),
		reference: fmt.Sprintf("%s %s", who, speed(f.flops(), time(reference), "GFlop/s")),
		cpu:       cpuSeconds(reference).over(cpuSeconds(ours)),
		wall:      wallSeconds(reference).over(wallSeconds(ours)),
		byWall:    threads > 1,
	}
}

func plural(threads int) string {
	if threads == 1 {
		return "1 thread"
	}
	return fmt.Sprintf("%d threads", threads)
}
