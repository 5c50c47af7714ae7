package merge

import (
	"github.com/loratool/loratool/formats/adapter"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/plan"
)

// AddVector adds a scaled vector to a bias: b' = b + scale · v. Side: v.
// Follows peft tuners/lora/layer.py, Linear.merge (lora_bias).
type AddVector struct {
	Scale  float64 `json:"scale"`
	Region Region  `json:"region"`
}

func (AddVector) Kind() string { return "add_vector" }

func (op AddVector) times(w float64) plan.Op {
	op.Scale *= w
	return op
}

func (op AddVector) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return addVector[float32]{op.Region, float32(op.Scale), s[0].Data}, nil
}

func (op AddVector) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return addVector[float64]{op.Region, op.Scale, s[0].Data}, nil
}

type addVector[T tensor.Float] struct {
	region Region
	scale  T
	v      []T
}

func (f addVector[T]) Apply(b plan.Band[T]) error {
	at, from, n := f.region.in(b.Row, b.Rows)
	x := b.X[at : at+n]
	for i, v := range f.v[from : from+n] {
		x[i] += T(f.scale * v)
	}
	return nil
}

// Scale multiplies rows or columns by a vector:
//
//	W'[i,:] = W[i,:] · v[i]            rows (an output per row)
//	W'[:,j] = W[:,j] · v[j / Repeat]   ByColumn; Repeat spans the kernel of a convolution
//
// A grouped convolution has its inputs' factors one group after another: the
// rows of group g, of RowsPerGroup each, take those from g·cols/Repeat on.
// Side: v. Follows peft tuners/ia3/layer.py, merge.
type Scale struct {
	ByColumn     bool   `json:"by_column,omitempty"`
	Repeat       int64  `json:"repeat,omitempty"`
	RowsPerGroup int64  `json:"rows_per_group,omitempty"`
	Region       Region `json:"region"`
}

func (Scale) Kind() string { return "scale" }

func (op Scale) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return bindScale(op, s[0].Data), nil
}

func (op Scale) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return bindScale(op, s[0].Data), nil
}

func bindScale[T tensor.Float](op Scale, v []T) plan.Func[T] {
	if op.ByColumn && op.Repeat > 1 {
		wide := make([]T, 0, len(v)*int(op.Repeat))
		for _, x := range v {
			for range op.Repeat {
				wide = append(wide, x)
			}
		}
		v = wide
	}
	return scaleFunc[T]{op, v}
}

type scaleFunc[T tensor.Float] struct {
	op Scale
	v  []T
}

func (f scaleFunc[T]) Apply(b plan.Band[T]) error {
	at, from, n := f.op.Region.in(b.Row, b.Rows)
	x := b.X[at*b.Cols : (at+n)*b.Cols]
	if f.op.ByColumn {
		perGroup := int(max(f.op.RowsPerGroup, 1))
		for n > 0 {
			group, rows := 0, n
			if f.op.RowsPerGroup > 0 {
				group = from / perGroup
				rows = min(n, (group+1)*perGroup-from)
			}
			kernel.ScaleCols(x[:rows*b.Cols], rows, b.Cols, f.v[group*b.Cols:(group+1)*b.Cols])
			x, from, n = x[rows*b.Cols:], from+rows, n-rows
		}
		return nil
	}
	kernel.ScaleRows(x, n, b.Cols, f.v[from:from+n])
	return nil
}

// SetRows replaces rows of a table: W'[Rows[i],:] = V[i,:]. A row that is
// listed twice keeps the last value, as index assignment does. Side: V.
// Follows peft tuners/trainable_tokens/layer.py, merge.
type SetRows struct {
	Rows []int64 `json:"rows"`
}

func (SetRows) Kind() string { return "set_rows" }

func (op SetRows) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return setRows[float32]{op.Rows, s[0].Data}, nil
}

func (op SetRows) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return setRows[float64]{op.Rows, s[0].Data}, nil
}

type setRows[T tensor.Float] struct {
	rows []int64
	v    []T
}

func (f setRows[T]) Apply(b plan.Band[T]) error {
	for i, row := range f.rows {
		if at := row - b.Row; at >= 0 && at < int64(b.Rows) {
			copy(b.X[at*int64(b.Cols):(at+1)*int64(b.Cols)], f.v[i*b.Cols:(i+1)*b.Cols])
		}
	}
	return nil
}

// Replace puts other values in place of all rows: W' = V. It only occurs inside
// a [Blend]; a replacement that stands alone is read straight from the adapter.
// Side: V.
type Replace struct{}

func (Replace) Kind() string { return "replace" }

func (Replace) Bind(s []tensor.Matrix[float32]) (plan.Func[float32], error) {
	return replace[float32]{s[0].Data}, nil
}

func (Replace) Bind64(s []tensor.Matrix[float64]) (plan.Func[float64], error) {
	return replace[float64]{s[0].Data}, nil
}

type replace[T tensor.Float] struct{ v []T }

func (f replace[T]) Apply(b plan.Band[T]) error {
	copy(b.X, f.v[b.Row*int64(b.Cols):])
	return nil
}

// ia3 reads an IA3 module: a factor per output, or per input for the modules
// that feedforward_modules names.
func (r *reader) ia3(t *adapter.Target) error {
	l, err := r.part(t, "ia3_l")
	if err != nil {
		return err
	}
	n := l.NumElements()
	longest := int64(0)
	for _, d := range l.Shape {
		longest = max(longest, d)
	}
	feedForward := r.config.FeedForward.MatchEnding(t.Name)
	if len(l.Shape) < 2 || longest != n {
		return r.refuse(l, "a factor of %v does not fit the base's %v", l.Shape, t.Shape)
	}
	if len(t.Shape) == 2 && (feedForward != (l.Shape[0] == 1 && n > 1)) && n > 1 {
		return r.refuse(l, "its shape %v contradicts feedforward_modules of the config", l.Shape)
	}
	op := Scale{ByColumn: feedForward}
	if len(t.Shape) == 2 {
		out, in := n, t.Shape[0]+t.Shape[1]-n
		if feedForward {
			out, in = in, out
		}
		transposed, ok := r.orientation(t, out, in)
		if !ok {
			return r.refuse(l, "%d factors do not fit the base's %v", n, t.Shape)
		}
		op.ByColumn = feedForward != transposed
	} else {
		want := t.Shape[0]
		if feedForward {
			want = t.Shape[1]
			op.Repeat = colsOf(t.Shape) / max(want, 1)
			if groups := n / max(want, 1); groups > 1 && n%want == 0 && t.Shape[0]%groups == 0 {
				op.RowsPerGroup = t.Shape[0] / groups
				want = n
			}
		}
		if n != want {
			return r.refuse(l, "%d factors do not fit the base's %v", n, t.Shape)
		}
	}
	r.change(t, false, func(region Region) []plan.Stage {
		op.Region = region
		return []plan.Stage{{Op: op, Sides: []plan.Slice{r.whole(l)}}}
	})
	if !feedForward && t.Bias != nil {
		if t.Bias.Rows != n {
			return r.refuse(l, "%d factors for a bias of %d", n, t.Bias.Rows)
		}
		r.changeBias(t, false, plan.Stage{Op: Scale{Region: Region{Rows: n}}, Sides: []plan.Slice{r.whole(l)}})
	}
	return nil
}
