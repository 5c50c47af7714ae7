package gguf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// The two forms of an importance matrix.
//
// Source: common/imatrix-loader.cpp and tools/quantize/quantize.cpp of llama.cpp, release
// v0.5.0. What that refuses is refused; further, sums that are negative or not finite,
// an entry that is there twice, and numbers that do not fill a group for each count.

// The keys of an importance matrix in a GGUF file.
const (
	keyDatasets   = "imatrix.datasets"
	keyChunkCount = "imatrix.chunk_count"
	keyChunkSize  = "imatrix.chunk_size"

	sumsSuffix   = ".in_sum2"
	countsSuffix = ".counts"
)

// readGGUF reads the form of GGUF: for each weight a tensor of sums (experts, columns) and
// one of counts (experts, 1).
func (m *Imatrix) readGGUF() error {
	f := &File{r: m.r}
	p, err := parseHeader(m.r)
	if err != nil {
		return err
	}
	f.tensors, f.byName = p.tensors, p.byName
	if err := m.readKeys(&p.metadata); err != nil {
		return err
	}
	for _, t := range f.tensors {
		name, isSums := strings.CutSuffix(t.Name, sumsSuffix)
		other := name + countsSuffix
		if !isSums {
			var isCounts bool
			if name, isCounts = strings.CutSuffix(t.Name, countsSuffix); !isCounts {
				continue
			}
			other = name + sumsSuffix
		}
		o, ok := f.Lookup(other)
		switch {
		case !ok:
			return &FormatError{Tensor: t.Name, Reason: fmt.Sprintf("there is no %s beside it", excerpt(other))}
		case t.Type != F32:
			return &FormatError{Tensor: t.Name, Reason: fmt.Sprintf("is of type %s, must be f32", t.Type)}
		case !isSums:
			continue
		}
		if err := m.addSums(name, t, o); err != nil {
			return err
		}
	}
	return nil
}

// readKeys reads what the matrix says of itself. All of it must be there.
func (m *Imatrix) readKeys(keys *Metadata) error {
	if _, err := keys.Int(keyChunkSize); err != nil {
		return &FormatError{Reason: "no importance matrix: " + err.Error()}
	}
	chunks, err := keys.Int(keyChunkCount)
	if err == nil && (chunks < 0 || chunks > math.MaxInt32) {
		err = &KeyError{Key: keyChunkCount, Reason: fmt.Sprintf("is %d", chunks)}
	}
	if err == nil {
		m.Datasets, err = keys.Strings(keyDatasets)
	}
	if err != nil {
		return &FormatError{Reason: err.Error()}
	}
	m.Chunks = int32(chunks)
	return nil
}

// addSums adds an entry with its counts, which the reference rounds to integers.
func (m *Imatrix) addSums(name string, sums, counts Tensor) error {
	e := imatrixEntry{offset: sums.Offset, n: sums.NumElements()}
	groups := counts.NumElements()
	if groups == 0 || e.n == 0 || e.n%groups != 0 {
		return &FormatError{Tensor: sums.Name, Reason: fmt.Sprintf("has %d numbers for %d counts", e.n, groups)}
	}
	if counts.Type != F32 {
		return &FormatError{Tensor: counts.Name, Reason: fmt.Sprintf("is of type %s, must be f32", counts.Type)}
	}
	raw, err := m.r.Bytes(counts.Offset, counts.Size())
	if err != nil {
		return err
	}
	e.counts = make([]float32, groups)
	for i := range e.counts {
		x := float64(floatAt(raw, i))
		if !(x >= 0 && x < 1<<63) {
			return &FormatError{Tensor: counts.Name, Offset: counts.Offset + 4*int64(i), Reason: fmt.Sprintf("count %d is %g", i, x)}
		}
		e.counts[i] = float32(math.Round(x))
	}
	m.entries[name] = e
	return nil
}

// readLegacy reads the older form, little endian, without a word between:
//
//	i32 entries; for each: i32 length, name, i32 calls, i32 n, n f32 sums
//	then, or not: i32 chunks, i32 length, data set
func (m *Imatrix) readLegacy() error {
	m.Legacy = true
	c := &legacyCursor{m: m}
	count, err := c.int32("the number of entries")
	if err != nil {
		return err
	}
	// An entry takes 17 bytes at least.
	if count < 1 || int64(count) > m.r.Size()/17 {
		return &FormatError{Reason: fmt.Sprintf("neither GGUF nor an importance matrix of the older form: %d entries in %d bytes", count, m.r.Size())}
	}
	for range count {
		if err := c.entry(); err != nil {
			return err
		}
	}
	if c.pos == m.r.Size() {
		return nil
	}
	if m.Chunks, err = c.int32("the number of chunks"); err != nil {
		return err
	}
	dataset, err := c.text("the name of the data set")
	if err != nil {
		return err
	}
	if dataset != "" {
		m.Datasets = []string{dataset}
	}
	if c.pos != m.r.Size() {
		return &FormatError{Offset: c.pos, Reason: fmt.Sprintf("%d bytes follow the name of the data set", m.r.Size()-c.pos)}
	}
	return nil
}

// legacyCursor walks over a matrix of the older form.
type legacyCursor struct {
	m   *Imatrix
	pos int64
}

func (c *legacyCursor) bytes(what string, n int64) ([]byte, error) {
	if err := c.m.r.Check(c.pos, n); err != nil {
		return nil, &FormatError{Offset: c.pos, Reason: fmt.Sprintf("the file ends in %s, which takes %d bytes", what, n)}
	}
	b, err := c.m.r.Bytes(c.pos, n)
	c.pos += n
	return b, err
}

func (c *legacyCursor) int32(what string) (int32, error) {
	b, err := c.bytes(what, 4)
	if err != nil {
		return 0, err
	}
	return int32(binary.LittleEndian.Uint32(b)), nil
}

// text reads a string, which ends at a NUL if it has one.
func (c *legacyCursor) text(what string) (string, error) {
	at := c.pos
	n, err := c.int32("the length of " + what)
	if err != nil {
		return "", err
	}
	if n < 0 {
		return "", &FormatError{Offset: at, Reason: fmt.Sprintf("%s has a length of %d", what, n)}
	}
	b, err := c.bytes(what, int64(n))
	if err != nil {
		return "", err
	}
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b), nil
}

func (c *legacyCursor) entry() error {
	at := c.pos
	name, err := c.text("the name of an entry")
	if err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return &FormatError{Offset: at, Reason: err.Error()}
	}
	if _, twice := c.m.entries[name]; twice {
		return &FormatError{Offset: at, Tensor: name, Reason: "entry is there twice"}
	}
	calls, err := c.int32("the number of calls")
	if err != nil {
		return err
	}
	n, err := c.int32("the number of weights")
	if err != nil {
		return err
	}
	if n < 1 {
		return &FormatError{Offset: c.pos - 4, Tensor: name, Reason: fmt.Sprintf("entry of %d weights", n)}
	}
	e := imatrixEntry{offset: c.pos, n: int64(n), counts: []float32{float32(calls)}}
	if err := c.m.r.Check(c.pos, 4*e.n); err != nil {
		return &FormatError{Offset: c.pos, Tensor: name, Reason: fmt.Sprintf("the file ends in the %d weights", n)}
	}
	c.pos += 4 * e.n
	c.m.entries[name] = e
	return nil
}
