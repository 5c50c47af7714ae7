package engine

import (
	"fmt"

	"github.com/loratool/loratool/plan"
)

// Allotment is how a memory budget is spent.
type Allotment struct {
	Jobs  int
	Band  int64 // elements of one computed band
	Chunk int64 // bytes of one copied chunk
	Sides int64 // bytes for side inputs and scratch of the steps in flight
	Peak  int64 // bytes the whole run allocates at most
}

// bytesPerElement is what one element of a computed band costs a worker: the
// stored bytes in and out (8 each at most), and the exact, original and
// rounded values as float64 in the worst case.
const bytesPerElement = 8 + 8 + 3*8

const (
	// maxBand keeps a band's values inside the caches of a few workers.
	maxBand = 1 << 20
	// maxChunk is where longer reads stop getting faster.
	maxChunk = 8 << 20
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
	row, rowOf := longestRow(p)
	sides, sidesOf := largestSides(p)
	for jobs := int64(o.Jobs); jobs >= 1; jobs-- {
		free := o.Memory - sides
		band := min(free/(jobs*bytesPerElement), maxBand)
		if band >= row && band > 0 {
			chunk := min(band*bytesPerElement, maxChunk)
			// Any step's sides fit beside the bands; what is left lets the
			// next step's sides load while this one's bands run.
			used := jobs * max(band*bytesPerElement, chunk)
			sideBudget := max(sides, min(o.Memory-used, 2*sides))
			return Allotment{Jobs: int(jobs), Band: band, Chunk: chunk, Sides: max(sideBudget, 1), Peak: used + sideBudget}, nil
		}
	}
	tensor := sidesOf
	if row*bytesPerElement > sides {
		tensor = rowOf
	}
	return Allotment{}, &MemoryError{Need: sides + max(row, 1)*bytesPerElement, Have: o.Memory, Tensor: tensor}
}

// longestRow returns the longest row that a computed step has to hold.
func longestRow(p *plan.Plan) (elements int64, tensor string) {
	for i := range p.Steps {
		if s := &p.Steps[i]; !s.Copies() && s.Read.Cols > elements {
			elements, tensor = s.Read.Cols, s.Write.Tensor
		}
	}
	return elements, tensor
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
	return s.SideElements()*size + s.Read.Rows()*rowStatBytes
}
