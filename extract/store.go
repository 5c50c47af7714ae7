package extract

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/nlpodyssey/safetensors"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/workfolder"
)

// Store keeps what the survey has found, one safetensors file per item, in a work
// folder beside the output. No decomposition is held in memory or made twice: the
// adapter is written from the store, and a run that was killed leaves a folder
// that another one can go on from.
//
// A file appears whole or not at all. The folder is named like any partial output,
// so that a later run recognises it.
type Store struct {
	*workfolder.Folder
	key   string
	index map[*item]int
}

// NewStore makes the work folder. With resume it takes over the folder that an
// earlier run of the same extraction has left, if there is one; Resumed tells.
func (s *Survey) NewStore(fsys fsatomic.FS, resume bool) (*Store, error) {
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	store := &Store{key: key, index: make(map[*item]int)}
	for i, it := range s.items {
		store.index[it] = i
	}
	store.Folder, err = workfolder.Open(fsys, s.opts.Output, key, resume)
	return store, err
}

// key is the SHA-256 of everything that the findings depend on: the two models,
// by name, size and time of every file and the place of every tensor; what is
// decomposed and how far; the kernels, whose products differ in their last bits.
func (s *Survey) key() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "loratool extract 1\n%s\n", kernel.Level())
	for _, m := range []*checkpoint.Model{s.base, s.tuned} {
		for _, f := range m.Files() {
			info, err := os.Stat(f.Path)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "file %q %d %d\n", f.Name, info.Size(), info.ModTime().UnixNano())
		}
		for _, spec := range m.Specs() {
			file, offset := m.Origin(spec.Name)
			fmt.Fprintf(h, "tensor %q %s %v %q %d\n", spec.Name, spec.DType, spec.Shape, file, offset)
		}
	}
	for _, it := range s.items {
		fmt.Fprintf(h, "item %q %s %v", it.name(), it.role, it.solve)
		if it.solve {
			o := s.solverOptions(it)
			fmt.Fprintf(h, " %+v %d %d %v", o, it.out, it.in, it.transposed)
		}
		fmt.Fprintln(h)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (s *Store) name(it *item) string { return fmt.Sprintf("%06d.safetensors", s.index[it]) }

// keep writes what was found of an item.
func (s *Store) keep(it *item, f finding, solved []linalg.SVD) error {
	if s == nil {
		return nil
	}
	views := make(map[string]safetensors.TensorView)
	add := func(name string, d safetensors.DType, data []byte, shape ...uint64) error {
		v, err := safetensors.NewTensorView(d, shape, data)
		views[name] = v
		return err
	}
	figures := f.pack()
	err := add("figures", safetensors.F64, float64Bytes(figures), uint64(len(figures)))
	if len(f.rows) > 0 {
		err = errors.Join(err, add("rows", safetensors.I64, int64Bytes(f.rows), uint64(len(f.rows))))
	}
	for b, d := range solved {
		if len(d.S) == 0 {
			continue
		}
		err = errors.Join(err,
			add(blockName(b, "S"), safetensors.F64, float64Bytes(d.S), uint64(len(d.S))),
			add(blockName(b, "U"), safetensors.F32, matrixBytes(d.U), uint64(d.U.Rows), uint64(d.U.Cols)),
			add(blockName(b, "VT"), safetensors.F32, matrixBytes(d.VT), uint64(d.VT.Rows), uint64(d.VT.Cols)))
	}
	if err != nil {
		return fmt.Errorf("keeping the factors of %q: %w", it.name(), err)
	}
	data, err := safetensors.Serialize(views, map[string]string{"key": s.key, "item": it.name()})
	if err != nil {
		return fmt.Errorf("keeping the factors of %q: %w", it.name(), err)
	}
	return s.Write(s.name(it), data)
}

// find returns what an earlier run has found of an item. What is missing, broken
// or of another extraction is computed again.
func (s *Store) find(it *item) (finding, bool) {
	if s == nil || !s.Resumed() {
		return finding{}, false
	}
	e, err := s.open(it)
	if err != nil {
		return finding{}, false
	}
	return e.finding, true
}

// entry is one file of the store.
type entry struct {
	finding
	tensors safetensors.SafeTensors
}

// errEntry says that a file of the store is not what was written there.
var errEntry = errors.New("the work folder was changed by another program")

// open reads and checks the file of an item.
func (s *Store) open(it *item) (*entry, error) {
	data, err := s.Read(s.name(it))
	if err != nil {
		return nil, err
	}
	return s.parse(it, data)
}

// parse checks the content of a file of the store.
func (s *Store) parse(it *item, data []byte) (*entry, error) {
	_, metadata, err := safetensors.ReadMetadata(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errEntry, err)
	}
	if m := metadata.Metadata(); m["key"] != s.key || m["item"] != it.name() {
		return nil, errEntry
	}
	e := new(entry)
	if e.tensors, err = safetensors.Deserialize(data); err != nil {
		return nil, fmt.Errorf("%w: %v", errEntry, err)
	}
	return e, e.unpack(it)
}

// pack writes the figures of a finding as a list of numbers.
func (f finding) pack() []float64 {
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	all := []float64{f.base, f.delta, flag(f.changed), flag(f.rounding), float64(len(f.rows)), float64(len(f.spectra))}
	for _, b := range f.spectra {
		all = append(all, b.squares, b.rest, b.excess, flag(b.converged), float64(len(b.values)))
	}
	return all
}

// unpack reads the figures and checks that the tensors are those that belong to
// them, in number, type, shape and by being finite.
func (e *entry) unpack(it *item) error {
	figures, err := e.numbers("figures", -1)
	if err != nil || len(figures) < 6 {
		return errEntry
	}
	e.base, e.delta = figures[0], figures[1]
	e.changed, e.rounding = figures[2] != 0, figures[3] != 0
	rows, blocks := figures[4], figures[5]
	figures = figures[6:]
	if blocks*5 != float64(len(figures)) || it.solve && blocks != float64(it.blocks) || !it.solve && blocks != 0 {
		return errEntry
	}
	if rows > 0 {
		v, ok := e.tensors.Tensor("rows")
		if !ok || v.DType() != safetensors.I64 || float64(v.DataLen()) != rows*8 {
			return errEntry
		}
		for raw := v.Data(); len(raw) > 0; raw = raw[8:] {
			e.rows = append(e.rows, int64(binary.LittleEndian.Uint64(raw)))
		}
		if !slices.IsSorted(e.rows) || e.rows[0] < 0 || e.rows[len(e.rows)-1] >= it.shape[0] {
			return errEntry
		}
	}
	for b := range int(blocks) {
		f := figures[5*b : 5*b+5]
		k := f[4]
		if !(k >= 0 && k <= float64(min(it.out, it.in))) {
			return errEntry
		}
		s := spectrum{squares: f[0], rest: f[1], excess: f[2], converged: f[3] != 0}
		if k > 0 {
			if s.values, err = e.numbers(blockName(b, "S"), int(k)); err != nil {
				return err
			}
			if !e.hasMatrix(blockName(b, "U"), it.out, int64(k)) || !e.hasMatrix(blockName(b, "VT"), int64(k), it.in) {
				return errEntry
			}
		}
		e.spectra = append(e.spectra, s)
	}
	return nil
}

// numbers returns a list of n finite float64 values; any number if n is -1.
func (e *entry) numbers(name string, n int) ([]float64, error) {
	v, ok := e.tensors.Tensor(name)
	if !ok || v.DType() != safetensors.F64 || n >= 0 && v.DataLen() != 8*uint64(n) {
		return nil, errEntry
	}
	all := make([]float64, 0, v.DataLen()/8)
	for raw := v.Data(); len(raw) > 0; raw = raw[8:] {
		x := math.Float64frombits(binary.LittleEndian.Uint64(raw))
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, errEntry
		}
		all = append(all, x)
	}
	return all, nil
}

// hasMatrix reports whether a tensor is a finite float32 matrix of the given size.
func (e *entry) hasMatrix(name string, rows, cols int64) bool {
	v, ok := e.tensors.Tensor(name)
	if !ok || v.DType() != safetensors.F32 || !slices.Equal(v.Shape(), []uint64{uint64(rows), uint64(cols)}) {
		return false
	}
	const exponent = 0x7f80_0000
	for raw := v.Data(); len(raw) > 0; raw = raw[4:] {
		if binary.LittleEndian.Uint32(raw)&exponent == exponent {
			return false
		}
	}
	return true
}

// matrix returns the bytes of a matrix that hasMatrix has seen.
func (e *entry) matrix(block int, name string) []byte {
	v, _ := e.tensors.Tensor(blockName(block, name))
	return v.Data()
}

func blockName(block int, name string) string { return fmt.Sprintf("%d.%s", block, name) }

// Close removes the work folder with all that is in it.
func (s *Store) Close() error {
	if s == nil {
		return nil
	}
	return s.Folder.Close()
}

func float64Bytes(x []float64) []byte {
	raw := make([]byte, 0, 8*len(x))
	for _, v := range x {
		raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(v))
	}
	return raw
}

func int64Bytes(x []int64) []byte {
	raw := make([]byte, 0, 8*len(x))
	for _, v := range x {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
	}
	return raw
}

// matrixBytes returns the elements of a matrix row by row.
func matrixBytes(m linalg.Matrix) []byte {
	raw := make([]byte, 0, 4*m.Rows*m.Cols)
	for i := range m.Rows {
		for _, v := range m.Data[i*m.Stride:][:m.Cols] {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
	}
	return raw
}
