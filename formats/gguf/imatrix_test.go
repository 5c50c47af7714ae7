package gguf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
)

const keyMatrixChunks = "quantize.imatrix.chunks_count"

// legacyEntry is an entry of the older form.
func legacyEntry(name string, calls int32, n int32, sums ...float32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b, _ = binary.Append(b, binary.LittleEndian, calls)
	b, _ = binary.Append(b, binary.LittleEndian, n)
	b, _ = binary.Append(b, binary.LittleEndian, sums)
	return b
}

func legacy(count int32, parts ...[]byte) []byte {
	b, _ := binary.Append(nil, binary.LittleEndian, count)
	return append(b, bytes.Join(parts, nil)...)
}

// trailer tells chunks and data set of the older form.
func trailer(chunks int32, dataset string) []byte {
	b, _ := binary.Append(nil, binary.LittleEndian, chunks)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(dataset)))
	return append(b, dataset...)
}

// matrixKeys are the keys that the form of GGUF must have.
func matrixKeys() *gguf.Metadata {
	return metadata("general.type", gguf.ValueOf("imatrix"), "imatrix.datasets", gguf.ArrayOf([]string{"a", "b"}),
		"imatrix.chunk_count", gguf.ValueOf(uint32(9)), "imatrix.chunk_size", gguf.ValueOf(uint32(512)))
}

// matrixFile is the form of GGUF with tensors of the given numbers.
func matrixFile(t testing.TB, keys *gguf.Metadata, tensors []gguf.Spec, values map[string][]float32) []byte {
	t.Helper()
	l, err := gguf.NewLayout(keys, tensors, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return assemble(t, l, func(s gguf.Spec) []byte {
		data := make([]byte, s.Size())
		for i, v := range values[s.Name] {
			binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(v))
		}
		return data
	})
}

func openMatrix(data []byte) (*gguf.Imatrix, error) {
	return gguf.NewImatrix(bytes.NewReader(data), int64(len(data)))
}

// Sums are divided by counts of their expert; one that was never asked weighs 1. What is
// neither sums nor counts is left alone.
func TestImatrixGGUF(t *testing.T) {
	m, err := openMatrix(matrixFile(t, matrixKeys(), []gguf.Spec{
		spec("a.counts", gguf.F32, 3, 1), spec("other", gguf.F16, 4), spec("a.in_sum2", gguf.F32, 3, 2),
		spec("b.in_sum2", gguf.F32, 2), spec("b.counts", gguf.F32, 1),
	}, map[string][]float32{"a.in_sum2": {3, 5, 5, 7, 0, 10}, "a.counts": {3, 0.4, 3.5}, "b.in_sum2": {1, 2}, "b.counts": {8}}))
	if err != nil {
		t.Fatal(err)
	}
	// 0.4 rounds to 0 and 3.5 to 4, as the reference rounds.
	checkWeights(t, m, "a", 1, float32(5)/3, 1, 1, 0, 2.5)
	checkWeights(t, m, "b", 0.125, 0.25)
	if sizes := m.Sizes(); len(sizes) != 2 || sizes["a"] != 6 || sizes["b"] != 2 {
		t.Errorf("sizes %v", sizes)
	}
	if m.Legacy || m.Chunks != 9 || !slices.Equal(m.Datasets, []string{"a", "b"}) {
		t.Errorf("legacy %v, %d chunks, %q", m.Legacy, m.Chunks, m.Datasets)
	}
	if _, err := m.Weights("c"); err == nil {
		t.Error("weights of a tensor that is not there")
	}
}

// In the older form one count is for all, and a count of 0 leaves the sums.
func TestImatrixLegacy(t *testing.T) {
	body := legacy(3, legacyEntry("a", 4, 2, 2, 6), legacyEntry("b", 0, 1, 5), legacyEntry("c", -3, 1, 7))
	for name, c := range map[string]struct {
		tail     []byte
		chunks   int32
		datasets []string
	}{
		"without":     {nil, 0, nil},
		"with":        {trailer(11, "wiki"), 11, []string{"wiki"}},
		"no data set": {trailer(11, ""), 11, nil},
		"NUL":         {trailer(-1, "wiki\x00more"), -1, []string{"wiki"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := openMatrix(slices.Concat(body, c.tail))
			if err != nil {
				t.Fatal(err)
			}
			checkWeights(t, m, "a", 0.5, 1.5)
			checkWeights(t, m, "b", 5)
			checkWeights(t, m, "c", 7)
			if !m.Legacy || m.Chunks != c.chunks || !slices.Equal(m.Datasets, c.datasets) {
				t.Errorf("legacy %v, %d chunks, %q", m.Legacy, m.Chunks, m.Datasets)
			}
			keys := new(gguf.Metadata)
			m.SetKeys(keys, strings.Repeat("f", 200))
			if file, _ := keys.Text("quantize.imatrix.file"); file != strings.Repeat("f", 127) {
				t.Errorf("file %q", file)
			}
			if n, _ := keys.Int("quantize.imatrix.entries_count"); n != 3 {
				t.Errorf("%d entries", n)
			}
			if keys.Has(keyMatrixChunks) != (c.chunks > 0) || keys.Has("quantize.imatrix.dataset") != (c.datasets != nil) {
				t.Error("chunks or data set differ from what is known")
			}
		})
	}
}

func checkWeights(t *testing.T, m *gguf.Imatrix, name string, want ...float32) {
	t.Helper()
	if got, err := m.Weights(name); err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: weights %v, want %v (%v)", name, got, want, err)
	}
}

func TestImatrixRefuses(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	ok := legacyEntry("a", 1, 1, 1)
	sums, counts := spec("a.in_sum2", gguf.F32, 4), spec("a.counts", gguf.F32, 1)
	file := func(m *gguf.Metadata, values map[string][]float32, specs ...gguf.Spec) []byte {
		return matrixFile(t, m, specs, values)
	}
	without := func(key string) *gguf.Metadata {
		m := matrixKeys()
		m.Delete(key)
		return m
	}
	whole := file(matrixKeys(), nil, sums, counts)
	chunks := matrixKeys()
	chunks.Set("imatrix.chunk_count", gguf.ValueOf(uint32(1<<31)))
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":              {nil, "the file ends in the number of entries"},
		"three bytes":        {[]byte{1, 0, 0}, "the file ends in the number of entries"},
		"no entries":         {legacy(0), "neither GGUF nor an importance matrix"},
		"negative":           {legacy(-1, ok), "neither GGUF nor an importance matrix"},
		"more than fit":      {legacy(1<<30, ok), "neither GGUF nor an importance matrix"},
		"one is missing":     {legacy(2, legacyEntry("a", 1, 8, make([]float32, 8)...), legacyEntry("b", 1, 1)[:10]), "the file ends in"},
		"long name":          {legacy(1, legacyEntry(strings.Repeat("x", 64), 1, 1, 1)), "64 bytes"},
		"name beyond":        {legacy(1, []byte{255, 255, 255, 127}, make([]byte, 20)), "the file ends in the name"},
		"name of -1":         {legacy(1, []byte{255, 255, 255, 255}, make([]byte, 20)), "length of -1"},
		"no name":            {legacy(1, legacyEntry("", 1, 2, 1, 1)), "empty"},
		"not UTF-8":          {legacy(1, legacyEntry("\xff\xfe", 1, 1, 1)), "UTF-8"},
		"twice":              {legacy(2, ok, ok), "twice"},
		"no weights":         {legacy(1, legacyEntry("abcdef", 1, 0)), "entry of 0 weights"},
		"negative count":     {legacy(1, legacyEntry("abcdef", 1, -1)), "entry of -1 weights"},
		"weights beyond":     {legacy(1, legacyEntry("a", 1, math.MaxInt32, 1)), "ends in the 2147483647 weights"},
		"one short":          {legacy(1, legacyEntry("abcd", 1, 3, 1, 1)), "ends in the 3 weights"},
		"NaN":                {legacy(1, legacyEntry("a", 1, 2, 0, nan)), "weight 1 is NaN"},
		"infinite":           {legacy(1, legacyEntry("a", 1, 1, inf)), "weight 0 is +Inf"},
		"minus":              {legacy(1, legacyEntry("a", 1, 1, -1)), "weight 0 is -1"},
		"late NaN":           {legacy(1, legacyEntry("a", 1, 40000, slices.Concat(make([]float32, 39999), []float32{nan})...)), "weight 39999 is NaN"},
		"half a trailer":     {legacy(1, ok, []byte{1, 0}), "the file ends in the number of chunks"},
		"no length":          {legacy(1, ok, []byte{1, 0, 0, 0}), "the file ends in the length of the name"},
		"data set beyond":    {legacy(1, ok, []byte{1, 0, 0, 0, 9, 0, 0, 0, 'a'}), "the file ends in the name of the data set"},
		"behind the end":     {legacy(1, ok, trailer(1, "a"), []byte{0}), "1 bytes follow"},
		"other endianness":   {append([]byte{0, 0, 0, 1}, ok...), "neither GGUF nor"},
		"GGUF cut":           {whole[:len(whole)-40], "a"},
		"GGUF header cut":    {whole[:30], "a file of 30 bytes"},
		"a model":            {file(metadata("general.architecture", gguf.ValueOf("llama")), nil, sums, counts), `no importance matrix: key "imatrix.chunk_size": missing`},
		"no count of chunks": {file(without("imatrix.chunk_count"), nil, sums, counts), `"imatrix.chunk_count": missing`},
		"no data sets":       {file(without("imatrix.datasets"), nil, sums, counts), `"imatrix.datasets": missing`},
		"many chunks":        {file(chunks, nil, sums, counts), `"imatrix.chunk_count": is 2147483648`},
		"no tensors":         {file(matrixKeys(), nil), "without entries"},
		"no counts":          {file(matrixKeys(), nil, sums), `there is no "a.counts"`},
		"no sums":            {file(matrixKeys(), nil, counts), `there is no "a.in_sum2"`},
		"sums of f16":        {file(matrixKeys(), nil, spec("a.in_sum2", gguf.F16, 4), counts), "must be f32"},
		"counts of f16":      {file(matrixKeys(), nil, sums, spec("a.counts", gguf.F16, 1)), "must be f32"},
		"uneven":             {file(matrixKeys(), nil, sums, spec("a.counts", gguf.F32, 3)), "4 numbers for 3 counts"},
		"counts of none":     {file(matrixKeys(), nil, sums, spec("a.counts", gguf.F32, 0)), "4 numbers for 0 counts"},
		"sums of none":       {file(matrixKeys(), nil, spec("a.in_sum2", gguf.F32, 0), counts), "0 numbers for 1 counts"},
		"count NaN":          {file(matrixKeys(), map[string][]float32{"a.counts": {nan}}, sums, counts), "count 0 is NaN"},
		"count minus":        {file(matrixKeys(), map[string][]float32{"a.counts": {-1}}, sums, counts), "count 0 is -1"},
		"sum minus":          {file(matrixKeys(), map[string][]float32{"a.in_sum2": {0, 0, -2}}, sums, counts), "weight 2 is -2"},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			took := allocated(func() { _, err = openMatrix(c.data) })
			if limit := 20*uint64(len(c.data)) + 4<<20; took > limit {
				t.Errorf("%d bytes of memory for a file of %d", took, len(c.data))
			}
			checkFormatError(t, err, c.want)
		})
	}
}

// A file that is cut after it was opened is an error, no zeros.
func TestImatrixCutLater(t *testing.T) {
	path := writeTemp(t, legacy(1, legacyEntry("a", 1, 2, 1, 1)))
	m, err := gguf.OpenImatrix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Weights("a"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	if _, err := gguf.OpenImatrix(filepath.Dir(path)); err == nil {
		t.Error("a folder is opened")
	}
}

// FuzzImatrix gives any bytes to both readers. Nothing may panic or take memory that the
// file does not explain; what is accepted has finite weights of its size.
func FuzzImatrix(f *testing.F) {
	f.Add(legacy(2, legacyEntry("a", 3, 2, 1, 2), legacyEntry("b", 0, 1, 4), trailer(3, "wiki")))
	f.Add(legacy(1, legacyEntry("a", 1, 1, 1)))
	f.Add(matrixFile(f, matrixKeys(), []gguf.Spec{spec("a.in_sum2", gguf.F32, 2, 3), spec("a.counts", gguf.F32, 2, 1)},
		map[string][]float32{"a.in_sum2": {1, 2, 3, 4, 5, 6}, "a.counts": {2, 0}}))
	f.Add(readFile(f, golden+"/imatrix.gguf"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m *gguf.Imatrix
		var err error
		if took := allocated(func() { m, err = openMatrix(data) }); took > 20*uint64(len(data))+4<<20 {
			t.Errorf("%d bytes of memory for a file of %d", took, len(data))
		}
		if err != nil {
			if _, ok := errors.AsType[*gguf.FormatError](err); !ok {
				t.Fatalf("error %v of type %T", err, err)
			}
			checkOneLine(t, err)
			return
		}
		for name, n := range m.Sizes() {
			weights, err := m.Weights(name)
			if err != nil || int64(len(weights)) != n || n == 0 {
				t.Fatalf("%q: %d weights of %d: %v", name, len(weights), n, err)
			}
			for _, w := range weights {
				if !(w >= 0 && w <= math.MaxFloat32) {
					t.Fatalf("%q: weight %g", name, w)
				}
			}
		}
	})
}
