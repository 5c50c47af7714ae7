package verify

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/arch"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
)

// Structure checks one checkpoint by itself: files, shapes against the config, tied
// head, vocabulary, element types, quantization, what runs code, and every value for
// infinities and NaN. What the rules of its container forbid is an error of opening
// it. Weights are read once, in bounded memory.
func Structure(ctx context.Context, m *checkpoint.Model, o Options) (*Report, error) {
	r := new(Report)
	return r, r.structure(ctx, m, o)
}

// structure adds the findings of the family to a report.
func (r *Report) structure(ctx context.Context, m *checkpoint.Model, o Options) error {
	r.begin(familyStructure)
	r.Tensors += len(m.Specs())
	s := &subject{Report: r, model: m, config: hfrepo.NewConfig(m.Config), options: o}
	for _, check := range structureChecks {
		if err := check(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// structureChecks are the checks of the family, in the order of their findings.
var structureChecks = []func(context.Context, *subject) error{
	checkFiles, checkIndex, checkGGUF, checkShapes, checkTie, checkVocabulary,
	checkDTypes, checkQuantization, checkCode, checkAdapter, checkValues,
}

// subject is what the checks of the family look at.
type subject struct {
	*Report
	model   *checkpoint.Model
	config  hfrepo.Config // empty without one; of an adapter its own
	options Options
	zero    map[string]bool // tensors of zeros only, once values were read
}

// isModel reports whether the checkpoint is a model with a config in the words of
// Hugging Face.
func (s *subject) isModel() bool { return s.model.Config != nil && !s.model.IsAdapter() }

const indexFile = "model.safetensors.index.json"

// checkFiles looks for weight files that nothing reads. The files of Mistral's own
// format lie beside the others on purpose.
func checkFiles(_ context.Context, s *subject) error {
	if !s.model.IsFolder || s.model.GGUF() != nil {
		return nil
	}
	entries, err := os.ReadDir(s.model.Path)
	if err != nil {
		return &checkpoint.InputError{Path: s.model.Path, Err: err}
	}
	read := make(map[string]bool)
	for _, f := range s.model.Files() {
		read[f.Name] = true
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasSuffix(name, ".safetensors") && !read[name] && !strings.HasPrefix(name, "consolidated") {
			s.add("shard-stray", "", "%q is not among the files that are read for this model", name)
		}
	}
	return nil
}

// checkIndex compares the size that an index states with that of the tensors.
func checkIndex(_ context.Context, s *subject) error {
	shards := 0
	for _, f := range s.model.Files() {
		if strings.HasSuffix(f.Name, ".safetensors") {
			shards++
		}
	}
	data, ok, err := s.sideFile(indexFile, hfrepo.MaxIndexSize)
	if err != nil || !ok || shards < 2 {
		return err
	}
	index, err := hfrepo.ParseIndex(data)
	if err != nil { // it was opened with it
		return &checkpoint.InputError{Path: filepath.Join(s.model.Path, indexFile), Err: err}
	}
	var size int64
	for _, spec := range s.model.RawSpecs() {
		size += spec.Size()
	}
	if index.TotalSize >= 0 && index.TotalSize != size {
		s.add("index-size", "", "total_size of the index is %d, the tensors have %d bytes", index.TotalSize, size).
			measured(float64(index.TotalSize), float64(size))
	}
	return nil
}

// sideFile reads a file of the folder whole; false if there is none.
func (s *subject) sideFile(name string, limit int64) ([]byte, bool, error) {
	if !s.model.IsFolder {
		return nil, false, nil
	}
	path := filepath.Join(s.model.Path, name)
	if _, err := os.Lstat(path); err != nil {
		return nil, false, nil
	}
	f, size, err := saferead.OpenRegular(path)
	if err != nil {
		return nil, true, &checkpoint.InputError{Path: path, Err: err}
	}
	defer f.Close() // only read from
	if size > limit {
		return nil, true, &checkpoint.InputError{Path: path, Err: fmt.Errorf("%d bytes, at most %d are read", size, limit)}
	}
	data, err := saferead.New(f, size).Bytes(0, size)
	if err != nil {
		return nil, true, &checkpoint.InputError{Path: path, Err: err}
	}
	return data, true, nil
}

// checkGGUF reports what is odd about a GGUF file.
func checkGGUF(_ context.Context, s *subject) error {
	summary, ok := s.model.GGUFSummary()
	if !ok {
		return nil
	}
	set := s.model.GGUF()
	for i, f := range set.Files() {
		if n := f.Trailing(); n > 0 {
			s.add("trailing-bytes", "", "%q has %d bytes behind its last tensor", filepath.Base(set.Paths()[i]), n).measured(float64(n), 0)
		}
	}
	for _, p := range summary.Problems {
		s.add("gguf-key", "", "%s", p)
	}
	return nil
}

// checkTie compares the head with the embedding that the config may tie it to.
func checkTie(ctx context.Context, s *subject) error {
	if !s.isModel() {
		return nil
	}
	names := func(yield func(string) bool) {
		for _, spec := range s.model.Specs() {
			if !yield(spec.Name) {
				return
			}
		}
	}
	architecture := s.config.Architecture()
	embedding, head, ok := arch.Embeddings(names, architecture)
	if !ok || !arch.HasHead(architecture) {
		return nil
	}
	tied, stated := s.config.Tied()
	_, stored := s.model.Lookup(head)
	switch {
	case !stored && stated && !tied:
		s.add("head-missing", head, "it is not stored, and tie_word_embeddings is false: it would be made of random numbers")
	case stored && stated && tied && !s.options.HeadersOnly:
		return s.compareTied(ctx, embedding, head)
	}
	return nil
}

func (s *subject) compareTied(ctx context.Context, embedding, head string) error {
	e, _ := s.model.Lookup(embedding)
	h, _ := s.model.Lookup(head)
	if !e.Shape.Equal(h.Shape) {
		s.add("tied-differs", head, "it has shape %s, the embedding that it is tied to %s", h.Shape, e.Shape)
		return nil
	}
	differ, ok, err := countDifferent(ctx, s.model, e, s.model, h)
	switch {
	case err != nil || !ok:
		return err
	case differ == 0:
		s.add("tied-stored", head, "it has the values of %q, to which it is tied", embedding)
	default:
		s.add("tied-differs", head, "%d of its %d values are not those of %q, to which the config ties it: loaders that tie drop them",
			differ, h.NumElements(), embedding).measured(float64(differ), 0)
	}
	return nil
}

// checkDTypes compares the types of the weights with that of the config.
func checkDTypes(_ context.Context, s *subject) error {
	if !s.isModel() {
		return nil
	}
	counts := make(map[tensor.DType]int)
	for _, spec := range s.model.Specs() {
		_, derived := s.model.Derived(spec.Name)
		if len(spec.Shape) >= 2 && spec.DType.IsFloat() && !derived {
			counts[spec.DType]++
		}
	}
	if stated := s.config.DType(); stated != tensor.NoDType && len(counts) > 0 && counts[stated] == 0 && !holdsFP8(counts) {
		s.add("dtype-config", "", "the config says %s, the matrices are %s", stated, listTypes(counts))
	}
	if len(counts) > 1 && !holdsFP8(counts) { // FP8 is beside tables of another type
		s.add("dtype-mixed", "", "the matrices are %s", listTypes(counts))
	}
	return nil
}

// holdsFP8 reports whether the weights are of 8 bits, where the config's type is
// that of the computation.
func holdsFP8(counts map[tensor.DType]int) bool {
	return counts[tensor.F8E4M3]+counts[tensor.F8E5M2] > 0
}

func listTypes(counts map[tensor.DType]int) string {
	var list []string
	for _, d := range slices.Sorted(maps.Keys(counts)) {
		list = append(list, fmt.Sprintf("%s (%d)", d, counts[d]))
	}
	return strings.Join(list, ", ")
}
