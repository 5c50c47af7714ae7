package engine

import (
	"fmt"

	"github.com/loratool/loratool/plan"
)

// Allotment is how a memory budget is spent.
type Allotment struct {
	Jobs  int
	Band  int64 // bytes that a worker reads, and writes, at a time
	Block int64 // elements of a band that a worker decodes at a time
	Sides int64 // bytes for side inputs and scratch of the steps in flight
	Peak  int64 // bytes the whole run allocates at most
	Fused bool  // there is room for the kernels that do all of a band at once
}

const (
	// maxBand is where longer reads and writes stop getting faster.
	maxBand = 2 << 20
	// maxBlock keeps the decoded values of a worker in the cache of its core.
	maxBlock = 128 << 10
	// heldDecoded is how often a worker holds a decoded block (see work).
	heldDecoded = 3
	// fusedRows is how many rows one call of the fused kernel gets: enough to
	// repay the packing of a factor.
	fusedRows = 512
	// fusedBytes is what a worker holds for them (kernel.Merger.Size; the packed
	// factor counts with the sides).
	fusedBytes = 224 << 10
)

// MemoryError says that a plan can't run in the memory it was given.
type MemoryError struct {
	Need, Have int64
	Tensor     string
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("%q needs %d bytes of working memory, the limit is %d", e.Tensor, e.Need, e.Have)
}

// Budget divides the memory of the options over bands and side inputs, taking
// fewer jobs when that is what it takes. It fails if even one job does not
// fit.
func Budget(p *plan.Plan, o Options) (Allotment, error) {
	o = o.WithDefaults()
	row := longestRow(p)
	sides, sidesOf := largestSides(p)
	for jobs := int64(o.Jobs); jobs >= 1; jobs-- {
		share := (o.Memory - sides) / jobs
		fused := share >= 16*fusedBytes
		if fused {
			share -= fusedBytes
		}
		block := max(row.elements, min(share/2/row.element, maxBlock))
		band := min((share-block*row.element)/2, max(row.stored, maxBand))
		if band >= row.stored && band > 0 {
			// Any step's sides fit beside the bands; what is left lets the
			// next step's sides load while this one's bands run.
			used := jobs * (2*band + block*row.element)
			if fused {
				used += jobs * fusedBytes
			}
			sideBudget := max(sides, min(o.Memory-used, 2*sides))
			return Allotment{Jobs: int(jobs), Band: band, Block: block, Sides: max(sideBudget, 1), Peak: used + sideBudget, Fused: fused}, nil
		}
	}
	tensor := sidesOf
	if row.bytes() > sides {
		tensor = row.tensor
	}
	return Allotment{}, &MemoryError{Need: sides + row.bytes(), Have: o.Memory, Tensor: tensor}
}

// row is the least that a worker has to hold: one row as stored, in and out,
// and decoded.
type row struct {
	elements int64
	stored   int64 // bytes, of the larger of input and output
	element  int64 // bytes of all the decoded values of one element
	tensor   string
}

func (r row) bytes() int64 { return 2*max(r.stored, 1) + r.elements*r.element }

// longestRow returns the largest row of all computed steps.
func longestRow(p *plan.Plan) row {
	longest := row{element: heldDecoded * 4}
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Copies() {
			continue
		}
		if s.Double() {
			longest.element = heldDecoded * 8
		}
		longest.stored = max(longest.stored, storedRow(s))
		if s.Read.Cols > longest.elements {
			longest.elements, longest.tensor = s.Read.Cols, s.Write.Tensor
		}
	}
	return longest
}

// storedRow returns the bytes of a row of a step as it is read or as it is
// written, whichever is more.
func storedRow(s *plan.Step) int64 {
	return s.Read.Cols * max(s.Read.Spec.DType.Bits(), s.Write.DType.Bits()) / 8
}

// largestSides returns the most bytes that the side inputs of one step take.
func largestSides(p *plan.Plan) (bytes int64, tensor string) {
	for i := range p.Steps {
		s := &p.Steps[i]
		if n := sideBytes(s); n > bytes {
			bytes, tensor = n, s.Write.Tensor
		}
	}
	return bytes, tensor
}

// sideBytes is what a computed step holds beside its bands: side inputs,
// scratch, and the figures of its rows.
func sideBytes(s *plan.Step) int64 {
	size := int64(4)
	if s.Double() {
		size = 8
	}
	if s.Copies() {
		return 0
	}
	return min(s.SideElements(), hugeCount)*size + min(rowsOf(s), hugeCount)*rowStatBytes
}

// hugeCount is more than any budget holds; what is counted up to it does not
// overflow.
const hugeCount = 1 << 56

// rowsOf returns the rows that a computed step goes through: none if they are
// empty, however many there are.
func rowsOf(s *plan.Step) int64 {
	if s.Read.Cols == 0 {
		return 0
	}
	return s.Read.Rows()
}
