package convert

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/quant/block"
)

// View is a model with the names and the rows of GGUF, read from the model that it is
// made from. Elements keep their type.
type View struct {
	source  checkpoint.Checkpoint
	specs   []tensor.Spec
	tensors map[string]*viewTensor
}

var _ checkpoint.Checkpoint = (*View)(nil)

// viewTensor is one tensor of a view.
type viewTensor struct {
	spec   tensor.Spec
	parts  []tensor.Spec // of the source: one, or those that are stacked
	data   []byte        // in place of parts, for what is in no file
	head   int64         // rows of a head whose halves become pairs; 0 for none
	half   bool          // half of the rows of each matrix of a stack
	second bool          // the second half
	turned bool          // the part is the transpose
}

// Specs returns the tensors in the order of the GGUF file.
func (v *View) Specs() []tensor.Spec { return v.specs }

// Open returns the bytes of a tensor.
func (v *View) Open(name string) (io.ReaderAt, error) {
	t, ok := v.tensors[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %q", name)
	}
	if t.parts == nil {
		return pieces{{bytesAt(t.data), int64(len(t.data))}}, nil
	}
	var all pieces
	for _, s := range t.parts {
		src, err := v.source.Open(s.Name)
		if err != nil {
			return nil, err
		}
		size := min(s.Size(), t.spec.Size())
		switch {
		case t.half:
			each := t.spec.Size() / max(t.spec.Shape[0], 1)
			for at := int64(0); at < s.Size() && each > 0; at += 2 * each {
				from := at
				if t.second {
					from += each
				}
				all = append(all, piece{io.NewSectionReader(src, from, each), each})
			}
			continue
		case t.turned:
			src = &turnedReader{src: src, rows: s.Shape[0], cols: s.Shape[1], element: s.DType.Bits() / 8}
		case t.head > 0:
			src = &pairedReader{src, s.Size() / s.Shape[0], t.head, s.Size()}
		}
		all = append(all, piece{src, size})
	}
	return all, nil
}

// piece is a run of bytes of a tensor.
type piece struct {
	io.ReaderAt
	size int64
}

// pieces reads one run behind the other.
type pieces []piece

func (ps pieces) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &saferead.RangeError{Offset: off, Length: int64(len(p))}
	}
	done := 0
	for _, part := range ps {
		if off >= part.size {
			off -= part.size
			continue
		}
		for done < len(p) && off < part.size {
			n := min(int64(len(p)-done), part.size-off)
			read, err := part.ReadAt(p[done:done+int(n)], off)
			done, off = done+read, off+int64(read)
			if int64(read) < n {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return done, err
			}
		}
		off = 0
		if done == len(p) {
			return done, nil
		}
	}
	return done, io.EOF
}

// bytesAt reads from memory.
type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// pairedReader brings the rows of each head from halves into pairs: row 2i+j of a head
// of D rows is what was its row j·D/2+i.
type pairedReader struct {
	src  io.ReaderAt
	row  int64 // bytes
	head int64 // rows
	size int64
}

// pairedRun is how much of each half of a head is read at a time.
const pairedRun = 256 << 10

var pairedRuns = sync.Pool{New: func() any { return new([]byte) }}

func (r *pairedReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &saferead.RangeError{Offset: off, Length: int64(len(p)), Size: r.size}
	}
	short := int64(len(p)) > r.size-off
	if short {
		p = p[:max(r.size-off, 0)]
	}
	buffer := pairedRuns.Get().(*[]byte)
	defer pairedRuns.Put(buffer)
	for done := 0; done < len(p); {
		n, err := r.run(buffer, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// run fills the beginning of p from one stretch of both halves of a head, and returns
// how much.
func (r *pairedReader) run(buffer *[]byte, p []byte, off int64) (int, error) {
	row := off / r.row
	first := row / r.head * r.head // of the head
	pair := (row - first) / 2
	end := (off+int64(len(p))-1)/r.row + 1 // row behind the last
	pairs := min((min(end, first+r.head)-first+1)/2-pair, max(pairedRun/r.row, 1))
	run := pairs * r.row
	if int64(cap(*buffer)) < 2*run {
		*buffer = make([]byte, 2*run)
	}
	halves := (*buffer)[:2*run]
	for j := range int64(2) {
		at := (first + j*r.head/2 + pair) * r.row
		if n, err := r.src.ReadAt(halves[j*run:(j+1)*run], at); int64(n) < run {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
	done, skip := 0, off-row*r.row
	for ; row < first+2*(pair+pairs) && done < len(p); row++ {
		j, i := (row-first)%2, (row-first)/2-pair
		done += copy(p[done:], halves[j*run+i*r.row+skip:j*run+(i+1)*r.row])
		skip = 0
	}
	return done, nil
}

// turnedReader is the transpose of a matrix: the element in row i and column j is the one
// in row j and column i of the source. It keeps what it has turned last, as the next read
// goes on there: the shorter the runs, the more time goes into reading them.
type turnedReader struct {
	src        io.ReaderAt
	rows, cols int64 // of the source
	element    int64 // bytes

	mu    sync.Mutex
	block []byte // rows of the transpose
	first int64  // of them
}

// turnedRun bounds what is turned at a time, one row at least.
const turnedRun = 8 << 20

func (r *turnedReader) ReadAt(p []byte, off int64) (int, error) {
	p, end := within(p, off, r.rows*r.cols*r.element)
	if len(p) == 0 {
		return 0, end
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	row := r.rows * r.element
	for done := 0; done < len(p); {
		at := off + int64(done)
		if skip := at - r.first*row; skip >= 0 && skip < int64(len(r.block)) {
			done += copy(p[done:], r.block[skip:])
			continue
		}
		if err := r.turn(at / row); err != nil {
			return done, err
		}
	}
	return len(p), end
}

// tileRows is how many rows of the source are turned at a time, so that what is written
// next to each other is a cache line or more.
const tileRows = 32

// turn makes rows of the transpose from the given one on: as many columns of the source,
// of which each row has a short run.
func (r *turnedReader) turn(first int64) error {
	row := r.rows * r.element
	n := min(max(turnedRun/row, 1), r.cols-first)
	run := n * r.element
	if need := n*row + tileRows*run; int64(cap(r.block)) < need {
		r.block = make([]byte, need)
	}
	turned, tile := r.block[:n*row], r.block[n*row:n*row+tileRows*run]
	r.block, r.first = r.block[:0], first // nothing, if a read fails
	for i := int64(0); i < r.rows; i += tileRows {
		height := min(tileRows, r.rows-i)
		for k := range height {
			if err := readAll(r.src, tile[k*run:(k+1)*run], ((i+k)*r.cols+first)*r.element); err != nil {
				return err
			}
		}
		r.turnTile(turned[i*r.element:], tile[:height*run], row, run)
	}
	r.block = turned
	return nil
}

// turnTile writes the columns of a tile as runs of rows that are row bytes apart.
func (r *turnedReader) turnTile(to, tile []byte, row, run int64) {
	height, width := int64(len(tile))/run, run/r.element
	j := int64(0)
	if r.element == 2 && height%4 == 0 {
		for ; j+4 <= width; j += 4 {
			turnFours(to[j*row:], tile[2*j:], row, run, height)
		}
	}
	for ; j < width; j++ {
		at, from := to[j*row:], tile[j*r.element:]
		switch r.element {
		case 2:
			for k := range height {
				*(*[2]byte)(at[2*k:]) = [2]byte(from[k*run:])
			}
		case 4:
			for k := range height {
				*(*[4]byte)(at[4*k:]) = [4]byte(from[k*run:])
			}
		default:
			for k := range height {
				copy(at[k*r.element:(k+1)*r.element], from[k*run:])
			}
		}
	}
}

// turnFours turns four columns of elements of two bytes, four rows at a time: the elements
// of four words change places.
func turnFours(to, from []byte, row, run, height int64) {
	const low = 0x0000ffff0000ffff
	load, store := binary.LittleEndian.Uint64, binary.LittleEndian.PutUint64
	for k := int64(0); k < height; k += 4 {
		f := from[k*run:]
		a, b, c, d := load(f), load(f[run:]), load(f[2*run:]), load(f[3*run:])
		// Pairs of elements first: a has rows 0 and 1 of columns 0 and 2 behind each other.
		a, b = a&low|b&low<<16, a>>16&low|b&^uint64(low)
		c, d = c&low|d&low<<16, c>>16&low|d&^uint64(low)
		t := to[2*k:]
		store(t, a&0xffffffff|c<<32)
		store(t[row:], b&0xffffffff|d<<32)
		store(t[2*row:], a>>32|c&^uint64(0xffffffff))
		store(t[3*row:], b>>32|d&^uint64(0xffffffff))
	}
}

// encodeF32 is numbers as they are stored.
func encodeF32(x []float32) []byte {
	codec, _ := block.For(tensor.F32)
	data := make([]byte, 4*len(x))
	codec.Encode32(data, x)
	return data
}

// decodeF32 is the inverse of encodeF32.
func decodeF32(data []byte) []float32 {
	codec, _ := block.For(tensor.F32)
	x := make([]float32, len(data)/4)
	block.Decode(codec, x, data)
	return x
}
