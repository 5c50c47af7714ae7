package forward

import (
	"math"

	"github.com/loratool/loratool/internal/linalg"
)

// attention computes o(softmax(q·kᵀ·scale)·v), where a token sees itself and those
// before it, in a layer with a window the last few only. Heads of queries share heads
// of keys in groups.
func (d *Decoder) attention(at string, layer int, spans []span, x linalg.Matrix, threads int) (linalg.Matrix, error) {
	q, err := d.project(at, "q", d.heads, layer, spans, x, threads)
	if err != nil {
		return q, err
	}
	k, err := d.project(at, "k", d.keyHeads, layer, spans, x, threads)
	if err != nil {
		return k, err
	}
	v, err := d.linear(at+"v_proj.weight", x, d.keyHeads*d.headSize, d.qkvBias, threads)
	if err != nil {
		return v, err
	}
	y := linalg.NewMatrix(x.Rows, d.heads*d.headSize, nil)
	weights := make([]float64, x.Rows)
	for _, s := range spans {
		for head := range d.heads {
			for t := s.from; t < s.to; t++ {
				first := s.from
				if w := d.windows[layer]; w > 0 {
					first = max(first, t-w+1)
				}
				d.attend(y, q, k, v, head, first, t, weights[:t+1-first])
			}
		}
	}
	return d.linear(at+"o_proj.weight", y, d.hidden, d.outBias, threads)
}

// project makes queries or keys: projection, norm of each head where the family has
// it, rotation by the position.
func (d *Decoder) project(at, which string, heads, layer int, spans []span, x linalg.Matrix, threads int) (linalg.Matrix, error) {
	y, err := d.linear(at+which+"_proj.weight", x, heads*d.headSize, d.qkvBias, threads)
	if err == nil && d.family.headNorms {
		y, err = d.norm(at+which+"_norm.weight", y)
	}
	if err != nil {
		return y, err
	}
	half := d.headSize / 2
	for _, s := range spans {
		for t := s.from; t < s.to; t++ {
			row := y.Data[t*y.Cols:][:y.Cols]
			for i, f := range d.frequencies[layer] {
				// The angle is a float32 product, as in transformers.
				sin, cos := math.Sincos(float64(float32(t-s.from) * f))
				for h := 0; h < len(row); h += d.headSize {
					a, b := float64(row[h+i]), float64(row[h+half+i])
					row[h+i], row[h+half+i] = float32(a*cos-b*sin), float32(b*cos+a*sin)
				}
			}
		}
	}
	return y, nil
}

// attend computes a head's output for token t, which sees the tokens from first on.
func (d *Decoder) attend(y, q, k, v linalg.Matrix, head, first, t int, weights []float64) {
	own, shared := head*d.headSize, head/(d.heads/d.keyHeads)*d.headSize
	query := q.Data[t*q.Cols+own:][:d.headSize]
	largest := math.Inf(-1)
	for j := range weights {
		score := dot(query, k.Data[(first+j)*k.Cols+shared:]) * d.queryScale
		if d.attentionCap > 0 {
			score = d.attentionCap * math.Tanh(score/d.attentionCap)
		}
		weights[j], largest = score, max(largest, score)
	}
	sum := 0.0
	for j, score := range weights {
		weights[j] = math.Exp(score - largest)
		sum += weights[j]
	}
	out := y.Data[t*y.Cols+own:][:d.headSize]
	for i := range out {
		mixed := 0.0
		for j, w := range weights {
			mixed += w * float64(v.Data[(first+j)*v.Cols+shared+i])
		}
		out[i] = float32(mixed / sum)
	}
}

func dot(x, y []float32) float64 {
	sum := 0.0
	for i, v := range x {
		sum += float64(v) * float64(y[i])
	}
	return sum
}
