// Package forward computes the logits of a decoder of the Llama family from token ids:
// llama, mistral, qwen2, qwen3, gemma, gemma2 and gemma3_text.
//
// [New] reads a config and checks that every tensor is there in the shape that it asks
// for; [Decoder.Logits] runs the blocks. One block with switches serves all families
// ([family]). What a config asks for and this package does not do is an
// [*UnsupportedError] that names the setting: nothing is approximated.
//
// Numbers are float32 as in transformers on a CPU, sums of norms, attention and
// softmax float64. Weights are read band by band when they are needed: memory is a band, the
// activations of all tokens and the logits.
package forward

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/linalg"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/quant/block"
)

// Tensors are the weights of a model under the names of Hugging Face.
type Tensors interface {
	Lookup(name string) (tensor.Spec, bool)
	Open(name string) (io.ReaderAt, error)
}

// TokenError says that a token is none of the model's.
type TokenError struct {
	Sequence, Position int
	ID, Vocabulary     int64
}

func (e *TokenError) Error() string {
	return fmt.Sprintf("sequence %d: token %d is %d, the vocabulary has %d", e.Sequence, e.Position, e.ID, e.Vocabulary)
}

// Decoder is a model that is ready to run. It may be used by one goroutine at a time.
type Decoder struct {
	// Round, if set, changes weights after they were decoded: a part of the tensor
	// that is named.
	Round func(name string, w []float32)

	settings
	weights Tensors
	head    string // the tensor that makes logits
	band    []float32
	raw     []byte
}

// New prepares the model whose config and tensors are given.
func New(config *strictjson.Object, w Tensors) (*Decoder, error) {
	s, err := readSettings(config)
	if err != nil {
		return nil, err
	}
	d := &Decoder{settings: s, weights: w, head: headName}
	if _, stored := w.Lookup(headName); !stored && s.tied {
		d.head = embeddingName
	}
	return d, d.check()
}

// Vocabulary returns the number of logits of a position.
func (d *Decoder) Vocabulary() int { return d.vocabulary }

// Logits returns the logits behind every token, row by row: the positions of the first
// sequence, of the second, and so on. No sequence sees another.
func (d *Decoder) Logits(ctx context.Context, sequences [][]int64, threads int) (linalg.Matrix, error) {
	spans, x, err := d.embed(sequences)
	if err != nil {
		return linalg.Matrix{}, err
	}
	for i := range d.layers {
		if err := ctx.Err(); err != nil {
			return linalg.Matrix{}, err
		}
		if err := d.block(i, spans, x, threads); err != nil {
			return linalg.Matrix{}, err
		}
	}
	x, err = d.norm("model.norm.weight", x)
	if err != nil {
		return linalg.Matrix{}, err
	}
	logits, err := d.linear(d.head, x, d.vocabulary, false, threads)
	if err == nil && d.finalCap > 0 {
		softCap(logits.Data, d.finalCap)
	}
	return logits, err
}

// span are the rows of one sequence.
type span struct{ from, to int }

// embed looks up the rows of all tokens.
func (d *Decoder) embed(sequences [][]int64) ([]span, linalg.Matrix, error) {
	var spans []span
	total := 0
	for i, ids := range sequences {
		for j, id := range ids {
			if id < 0 || id >= int64(d.vocabulary) {
				return nil, linalg.Matrix{}, &TokenError{i, j, id, int64(d.vocabulary)}
			}
		}
		spans = append(spans, span{total, total + len(ids)})
		total += len(ids)
	}
	x := linalg.NewMatrix(total, d.hidden, nil)
	scale := float32(1)
	if d.family.scaledEmbedding {
		scale = float32(math.Sqrt(float64(d.hidden)))
	}
	for i, ids := range sequences {
		for j, id := range ids {
			row := x.Data[(spans[i].from+j)*d.hidden:][:d.hidden]
			if err := d.read(embeddingName, row, id*int64(d.hidden)); err != nil {
				return nil, linalg.Matrix{}, err
			}
			for k := range row {
				row[k] *= scale
			}
		}
	}
	return spans, x, nil
}

// block adds attention and perceptron of a layer to x.
func (d *Decoder) block(layer int, spans []span, x linalg.Matrix, threads int) error {
	at := fmt.Sprintf("model.layers.%d.", layer)
	before, behind := "post_attention_layernorm.weight", ""
	if d.family.fourNorms {
		before, behind = "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"
	}
	y, err := d.norm(at+"input_layernorm.weight", x)
	if err == nil {
		y, err = d.attention(at+"self_attn.", layer, spans, y, threads)
	}
	if err == nil && d.family.fourNorms {
		y, err = d.norm(at+"post_attention_layernorm.weight", y)
	}
	if err != nil {
		return err
	}
	add(x.Data, y.Data)
	y, err = d.norm(at+before, x)
	if err == nil {
		y, err = d.perceptron(at+"mlp.", y, threads)
	}
	if err == nil && behind != "" {
		y, err = d.norm(at+behind, y)
	}
	if err != nil {
		return err
	}
	add(x.Data, y.Data)
	return nil
}

// perceptron computes down(act(gate(x)) * up(x)).
func (d *Decoder) perceptron(at string, x linalg.Matrix, threads int) (linalg.Matrix, error) {
	gate, err := d.linear(at+"gate_proj.weight", x, d.intermediate, d.mlpBias, threads)
	if err != nil {
		return gate, err
	}
	up, err := d.linear(at+"up_proj.weight", x, d.intermediate, d.mlpBias, threads)
	if err != nil {
		return up, err
	}
	for i, v := range gate.Data {
		up.Data[i] *= float32(d.activation(float64(v)))
	}
	return d.linear(at+"down_proj.weight", up, d.hidden, d.mlpBias, threads)
}

// norm computes x / sqrt(mean(x²) + eps) · w for rows as wide as w, with 1 + w for
// gemma.
func (d *Decoder) norm(name string, x linalg.Matrix) (linalg.Matrix, error) {
	spec, _ := d.weights.Lookup(name)
	w := make([]float32, spec.NumElements())
	if err := d.read(name, w, 0); err != nil {
		return linalg.Matrix{}, err
	}
	if d.family.normPlusOne {
		for i := range w {
			w[i]++
		}
	}
	y := linalg.NewMatrix(x.Rows, x.Cols, nil)
	for at := 0; at < len(x.Data); at += len(w) {
		row, out := x.Data[at:][:len(w)], y.Data[at:]
		sum := 0.0
		for _, v := range row {
			sum += float64(v) * float64(v)
		}
		f := 1 / math.Sqrt(sum/float64(len(w))+d.epsilon)
		for i, v := range row {
			out[i] = float32(float64(v)*f) * w[i]
		}
	}
	return y, nil
}

// bandElements is how much of a matrix is in memory at a time: 16 MiB as float32.
const bandElements = 4 << 20

// linear computes x·Wᵀ + b, rows of W band by band.
func (d *Decoder) linear(name string, x linalg.Matrix, out int, bias bool, threads int) (linalg.Matrix, error) {
	y := linalg.NewMatrix(x.Rows, out, nil)
	step := max(bandElements/x.Cols, 1)
	for from := 0; from < out; from += step {
		n := min(step, out-from)
		if cap(d.band) < n*x.Cols {
			d.band = make([]float32, n*x.Cols)
		}
		w := linalg.NewMatrix(n, x.Cols, d.band[:n*x.Cols])
		if err := d.read(name, w.Data, int64(from)*int64(x.Cols)); err != nil {
			return y, err
		}
		if x.Rows > 0 {
			linalg.Gemm(1, x, w.T(), 0, linalg.Matrix{Data: y.Data[from:], Rows: x.Rows, Cols: n, Stride: out}, threads)
		}
	}
	if !bias {
		return y, nil
	}
	b := make([]float32, out)
	if err := d.read(biasOf(name), b, 0); err != nil {
		return y, err
	}
	for at := 0; at < len(y.Data); at += out {
		add(y.Data[at:at+out], b)
	}
	return y, nil
}

// read decodes elements of a tensor, from the given one on.
func (d *Decoder) read(name string, dst []float32, first int64) error {
	src, err := d.weights.Open(name)
	if err != nil {
		return err
	}
	spec, _ := d.weights.Lookup(name)
	codec, ok := block.For(spec.DType)
	if !ok {
		return &UnsupportedError{"element type of " + name, spec.DType.String()}
	}
	size := spec.DType.Bits() / 8
	if n := int64(len(dst)) * size; int64(cap(d.raw)) < n {
		d.raw = make([]byte, n)
	}
	raw := d.raw[:int64(len(dst))*size]
	if n, err := src.ReadAt(raw, first*size); n < len(raw) {
		return fmt.Errorf("reading %q: %w", name, err)
	}
	codec.Decode32(dst, raw)
	if d.Round != nil {
		d.Round(name, dst)
	}
	return nil
}

func add(x, y []float32) {
	for i, v := range y {
		x[i] += v
	}
}

// softCap computes c·tanh(x/c).
func softCap(x []float32, c float64) {
	for i, v := range x {
		x[i] = float32(c * math.Tanh(float64(v)/c))
	}
}
