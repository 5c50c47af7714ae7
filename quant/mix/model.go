package mix

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/formats/gguf"
)

// Model is what the recipes want to know about a model beside its tensors.
type Model struct {
	Arch string
	// Layers is the number of blocks as the reference counts them: with those that
	// predict further tokens, and as often as the model runs through them.
	Layers int64
	// Experts is the number of experts of a block, 0 if there are none.
	Experts int64
	// Heads and HeadsKV are the attention's heads in the first block, 0 if it
	// has none.
	Heads, HeadsKV int64
	// Large is true for models that the reference takes for one of 70 billion weights,
	// by the number of blocks, and gives better attention values.
	Large bool
	// FileType is the value of general.file_type, if HasFileType.
	FileType    uint32
	HasFileType bool
}

// maxLayers is the size of the reference's tables per layer (LLAMA_MAX_LAYERS).
const maxLayers = 512

// clip is the architecture of vision and audio encoders. The reference reads none of
// their numbers.
const clip = "clip"

// large gives, per architecture, the number of blocks of its model of 70 billion
// weights, without those that predict further tokens. (LLM_TYPE_70B in src/models.
// That of jais2 has 68 blocks, Qwen2 with 80 has 72 billion.)
var large = map[string]int64{"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}

// ModelOf reads the numbers from a file's keys. A key that is missing or makes no sense is
// a [*gguf.KeyError]. An architecture that the reference does not know is
// none: the general rules apply to it.
func ModelOf(keys *gguf.Metadata) (Model, error) {
	var m Model
	if err := m.readGeneral(keys); err != nil {
		return m, err
	}
	arch, err := keys.Text("general.architecture")
	if m.Arch = arch; err != nil || arch == clip {
		return m, err
	}
	r := reader{keys: keys, arch: arch}
	blocks := r.number("block_count", 0, 1, maxLayers)
	further := r.number("nextn_predict_layers", 0, 0, blocks)
	m.Layers = r.layers(blocks, further)
	m.Experts = r.number("expert_count", 0, 0, math.MaxInt32)
	m.Heads = r.first("attention.head_count", 0, blocks)
	m.HeadsKV = r.first("attention.head_count_kv", m.Heads, blocks)
	m.Large = r.large(m, blocks-further)
	return m, r.err
}

// readGeneral reads what all models have, and refuses files that are no models.
func (m *Model) readGeneral(keys *gguf.Metadata) error {
	const keyType = "general.type"
	kind, _, err := keys.OptText(keyType)
	if err != nil {
		return err
	}
	if kind == "adapter" || kind == "imatrix" {
		return &gguf.KeyError{Key: keyType, Reason: fmt.Sprintf("%q is no model", kind)}
	}
	n, ok, err := keys.OptInt(keyFileType)
	if err != nil {
		return err
	}
	if n < 0 || n > math.MaxUint32 {
		return &gguf.KeyError{Key: keyFileType, Reason: fmt.Sprintf("%d is no file type", n)}
	}
	m.FileType, m.HasFileType = uint32(n), ok
	return nil
}

// reader reads the numbers of an architecture and keeps the first error.
type reader struct {
	keys *gguf.Metadata
	arch string
	err  error
}

// number reads an integer between least and most. A key that is missing has the
// value absent, unless that is below least.
func (r *reader) number(key string, absent, least, most int64) int64 {
	key = r.arch + "." + key
	n, ok, err := r.keys.OptInt(key)
	if err == nil && !ok {
		if absent >= least {
			return absent
		}
		err = &gguf.KeyError{Key: key, Reason: "missing"}
	}
	if err == nil && (n < least || n > most) {
		err = &gguf.KeyError{Key: key, Reason: fmt.Sprintf("%d is not between %d and %d", n, least, most)}
	}
	if r.err == nil {
		r.err = err
	}
	return n
}

// first reads a number that may also be an array with one number per block, of which
// only that of the first block counts.
func (r *reader) first(key string, absent, blocks int64) int64 {
	v, ok := r.keys.Get(r.arch + "." + key)
	if !ok || v.Type() != gguf.Array {
		return r.number(key, absent, 0, math.MaxUint32)
	}
	full := r.arch + "." + key
	numbers, err := v.Ints()
	switch {
	case err != nil:
		err = &gguf.KeyError{Key: full, Reason: err.Error()}
	case int64(len(numbers)) != blocks || blocks == 0:
		err = &gguf.KeyError{Key: full, Reason: fmt.Sprintf("%d numbers for %d blocks", len(numbers), blocks)}
	case numbers[0] < 0:
		err = &gguf.KeyError{Key: full, Reason: fmt.Sprintf("%d is negative", numbers[0])}
	default:
		return numbers[0]
	}
	if r.err == nil {
		r.err = err
	}
	return 0
}

// layers returns the number of layers that the blocks of a model make.
func (r *reader) layers(blocks, further int64) int64 {
	switch r.arch {
	case "nanbeige": // may run through its blocks several times
		if loops := r.number("num_loops", 1, 1, maxLayers/max(blocks, 1)); loops > 1 {
			return loops * (blocks - further)
		}
	case "graniteswitch": // has a further layer that chooses the adapter
		return blocks - further + 1
	}
	return blocks
}

// large reports whether the reference calls the model one of 70 billion weights.
func (r *reader) large(m Model, blocks int64) bool {
	n, ok := large[m.Arch]
	if !ok || n != blocks {
		return false
	}
	if m.Arch == "llama" || m.Arch == "llama-embed" {
		// The first Llama of 80 blocks has 65 billion and no shared heads.
		return m.Heads != m.HeadsKV && m.Experts != 8
	}
	return true
}

// sharedBy returns how many heads share one of keys and values, rounded down.
func (m Model) sharedBy() int64 {
	if m.HeadsKV == 0 {
		return 0
	}
	return m.Heads / m.HeadsKV
}
