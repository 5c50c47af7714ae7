package quant

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nlpodyssey/safetensors"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/workfolder"
	"github.com/loratool/loratool/quant/loftq"
)

// Store keeps the pairs, one safetensors file for each weight, in a work folder beside
// the adapter: they are not held in memory, and a run that was killed leaves what
// another one can go on from.
type Store struct {
	*workfolder.Folder
	key string
}

// NewStore makes the work folder. With resume it takes over the folder that an earlier
// run of the same quantization has left, if there is one.
func (r *Repair) NewStore(fsys fsatomic.FS, resume bool) (*Store, error) {
	return newStore(fsys, r.opts.LoftQ, r.key(), resume)
}

func newStore(fsys fsatomic.FS, l *LoftQ, key string, resume bool) (*Store, error) {
	folder, err := workfolder.Open(fsys, l.Output, key, resume)
	return &Store{folder, key}, err
}

// key is the SHA-256 of everything that the pairs depend on: the inputs, what each
// weight becomes and how; the kernels, whose products differ in their last bits.
func (r *Repair) key() string {
	h := sha256.New()
	fmt.Fprintf(h, "loratool loftq 1\n%s\n%s\n", kernel.Level(), r.base.Identity())
	if m := r.opts.LoftQ.Moments; m != nil {
		fmt.Fprintln(h, m.Identity())
	}
	for _, p := range r.pairs {
		o := r.opts.LoftQ.solverOptions(p, 1)
		o.Moments = nil // are those of the file
		t := p.target
		fmt.Fprintf(h, "%q %s %v %v %+v %+v\n", t.spec.Name, t.spec.DType, t.shape, t.transposed, r.View.quantizer(t), o)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (p *pairing) fileName() string { return fmt.Sprintf("%06d.safetensors", p.index) }

// keep writes what was found of a weight.
func (s *Store) keep(p *pairing, f *finding) error {
	views := make(map[string]safetensors.TensorView)
	var err error
	add := func(name string, d safetensors.DType, data []byte, shape ...uint64) {
		v, verr := safetensors.NewTensorView(d, shape, data)
		views[name] = v
		err = errors.Join(err, verr)
	}
	figures := []float64{
		f.plain.Plain, f.plain.Weighted, f.repaired.Plain, f.repaired.Weighted, f.best,
		float64(f.kept), float64(f.made), float64(f.unused), f.absmax, f.norm,
	}
	raw := make([]byte, 0, 8*len(figures))
	for _, v := range figures {
		raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(v))
	}
	add("figures", safetensors.F64, raw, uint64(len(figures)))
	matrix := func(name string, m linalg.Matrix) {
		add(name, safetensors.F32, encodeFloats(m.Data[:m.Rows*m.Cols]), uint64(m.Rows), uint64(m.Cols))
	}
	matrix("A", f.pair.A)
	matrix("B", f.pair.B)
	if f.shift.Rank() > 0 {
		matrix("shift.A", f.shift.A)
		matrix("shift.B", f.shift.B)
	}
	if err != nil {
		return fmt.Errorf("keeping the pair of %q: %w", p.name, err)
	}
	data, err := safetensors.Serialize(views, map[string]string{"key": s.key, "module": p.name})
	if err != nil {
		return fmt.Errorf("keeping the pair of %q: %w", p.name, err)
	}
	return s.Write(p.fileName(), data)
}

// errStore says that a file of the store is not what was written there.
var errStore = errors.New("the work folder was changed by another program")

// find returns what was found of a weight.
func (s *Store) find(p *pairing) (*finding, error) {
	data, err := s.Read(p.fileName())
	if err == nil {
		var f *finding
		if f, err = s.parse(p, data); err == nil {
			return f, nil
		}
	}
	return nil, fmt.Errorf("reading the pair of %q: %w", p.name, err)
}

// parse checks the content of a file of the store.
func (s *Store) parse(p *pairing, data []byte) (*finding, error) {
	_, metadata, err := safetensors.ReadMetadata(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errStore, err)
	}
	if m := metadata.Metadata(); m["key"] != s.key || m["module"] != p.name {
		return nil, errStore
	}
	tensors, err := safetensors.Deserialize(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errStore, err)
	}
	f := new(finding)
	ok := f.unpack(tensors)
	out, in := p.target.shape[0], p.target.shape[1]
	ok = readMatrix(tensors, "A", p.rank, in, &f.pair.A) && ok
	ok = readMatrix(tensors, "B", out, p.rank, &f.pair.B) && ok
	if _, shifted := tensors.Tensor("shift.A"); shifted {
		ok = readMatrix(tensors, "shift.A", p.rank, in, &f.shift.A) && ok
		ok = readMatrix(tensors, "shift.B", out, p.rank, &f.shift.B) && ok
	}
	if !ok {
		return nil, errStore
	}
	return f, nil
}

// unpack reads the figures, all finite but for errors that may be infinite.
func (f *finding) unpack(tensors safetensors.SafeTensors) bool {
	v, ok := tensors.Tensor("figures")
	if !ok || v.DType() != safetensors.F64 || v.DataLen() != 80 {
		return false
	}
	var x [10]float64
	for i := range x {
		if x[i] = math.Float64frombits(binary.LittleEndian.Uint64(v.Data()[8*i:])); math.IsNaN(x[i]) {
			return false
		}
	}
	f.plain, f.repaired = loftq.Errors{Plain: x[0], Weighted: x[1]}, loftq.Errors{Plain: x[2], Weighted: x[3]}
	f.best, f.kept, f.made, f.unused, f.absmax, f.norm = x[4], int(x[5]), int(x[6]), int(x[7]), x[8], x[9]
	return f.kept >= 0 && f.kept <= f.made && f.unused >= 0
}

// readMatrix reads a finite float32 matrix of the given size.
func readMatrix(tensors safetensors.SafeTensors, name string, rows, cols int64, m *linalg.Matrix) bool {
	v, ok := tensors.Tensor(name)
	if !ok || v.DType() != safetensors.F32 || !slices.Equal(v.Shape(), []uint64{uint64(rows), uint64(cols)}) {
		return false
	}
	*m = linalg.NewMatrix(int(rows), int(cols), nil)
	for i := range m.Data {
		x := math.Float32frombits(binary.LittleEndian.Uint32(v.Data()[4*i:]))
		if x-x != 0 {
			return false
		}
		m.Data[i] = x
	}
	return true
}

// Use makes what the tasks have found that of both outputs: the weights are shifted,
// the pairs can be read, and the adapter's card has their figures. It must come before
// either plan is run.
func (r *Repair) Use(store *Store) error {
	r.store = store
	r.View.shift = func(t *target) (loftq.Factors, error) {
		if t.pair == nil {
			return loftq.Factors{}, nil
		}
		f, err := store.find(t.pair)
		if err != nil {
			return loftq.Factors{}, err
		}
		return f.shift, nil
	}
	figures, err := r.Repaired()
	if err != nil {
		return err
	}
	decidePairs(r.AdapterPlan, figures)
	return r.layoutAdapter(figures)
}

// Repaired returns what became of every weight with a pair, in order.
func (r *Repair) Repaired() ([]Repaired, error) {
	return r.store.figures(r.pairs, r.opts.LoftQ.scale(), r.View.nominalBits)
}

// figures returns what became of weights, whose bits per element are given.
func (s *Store) figures(pairs []*pairing, scale float64, bits func(*target) float64) ([]Repaired, error) {
	all := make([]Repaired, len(pairs))
	for i, p := range pairs {
		f, err := s.find(p)
		if err != nil {
			return nil, err
		}
		t := p.target
		all[i] = Repaired{
			Tensor: t.spec.Name, Module: p.name, Shape: t.shape, Bits: bits(t), Bytes: t.bytes,
			PairBytes: 4 * p.rank * (t.shape[0] + t.shape[1]), AbsMax: f.absmax, Norm: f.norm,
			Plain: f.plain, Error: f.repaired, Scale: scale, Best: f.best,
			Kept: f.kept, Made: f.made, Unused: f.unused,
		}
	}
	return all, nil
}

var _ checkpoint.Checkpoint = (*pairs)(nil)
