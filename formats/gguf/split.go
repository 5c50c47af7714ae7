package gguf

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
)

// The keys of a file that is one of several (llama.cpp's gguf-split).
const (
	KeySplitNo      = "split.no"            // u16, from 0
	KeySplitCount   = "split.count"         // u16, the number of files; 0 and 1 stand for a file that is not split
	KeySplitTensors = "split.tensors.count" // i32, the tensors of all files together
)

// splitKeys are the keys above.
var splitKeys = []string{KeySplitNo, KeySplitCount, KeySplitTensors}

// maxShards is the number of files that a u16 can count.
const maxShards = math.MaxUint16

// ShardName returns the path of one file of a split model. The first is no 0,
// in the keys; in names, the reference counts from 1.
func ShardName(prefix string, no, count int) string {
	return fmt.Sprintf("%s-%05d-of-%05d.gguf", prefix, no+1, count)
}

var shardPattern = regexp.MustCompile(`^(?s:(.+))-([0-9]{5})-of-([0-9]{5})\.gguf$`)

// ParseShardName takes the path of one file of a split model apart, or reports
// false if it is not named like one.
func ParseShardName(path string) (prefix string, no, count int, ok bool) {
	m := shardPattern.FindStringSubmatch(path)
	if m == nil {
		return "", 0, 0, false
	}
	first, _ := strconv.Atoi(m[2]) // five digits
	count, _ = strconv.Atoi(m[3])
	if first < 1 || first > count {
		return "", 0, 0, false
	}
	return m[1], first - 1, count, true
}

// SplitOptions says where to split. At most one of the limits may be set.
type SplitOptions struct {
	MaxTensors int   // per file; 128 if neither limit is set, as in the reference
	MaxBytes   int64 // of tensors with their padding per file; a larger one gets its own file
	FirstEmpty bool  // the first file has metadata only
}

// defaultMaxTensors is the reference's default.
const defaultMaxTensors = 128

// Validate reports options that contradict each other or say nothing.
func (o SplitOptions) Validate() error {
	switch {
	case o.MaxTensors < 0:
		return fmt.Errorf("MaxTensors is %d", o.MaxTensors)
	case o.MaxBytes < 0:
		return fmt.Errorf("MaxBytes is %d", o.MaxBytes)
	case o.MaxTensors > 0 && o.MaxBytes > 0:
		return fmt.Errorf("MaxTensors and MaxBytes are both set")
	}
	return nil
}

// Split lays out a model in several files, in the order given, as the
// reference's gguf-split does. The first has all keys; each has the three of the
// split, at their end. In two points it differs. An alignment other than the
// default is kept, in all files, where the reference writes files that it can't
// read. And a first tensor above the limit gets a file, where the reference
// gives up.
//
// The files are to be named with [ShardName]. There may turn out to be only
// one, which readers take as not split.
func Split(m *Metadata, specs []Spec, so SplitOptions, lo LayoutOptions) ([]*Layout, error) {
	if err := so.Validate(); err != nil {
		return nil, err
	}
	alignment, err := m.alignment()
	if err != nil {
		return nil, &KeyError{Key: KeyAlignment, Reason: err.Error()}
	}
	shards, err := cut(specs, so, alignment)
	if err != nil {
		return nil, err
	}
	if len(shards) > maxShards {
		return nil, fmt.Errorf("%d files are more than the %d a split model may have", len(shards), maxShards)
	}
	if err := checkTwice(specs); err != nil {
		return nil, err
	}
	layouts := make([]*Layout, len(shards))
	for i, shard := range shards {
		keys := shardKeys(m, i)
		keys.Set(KeySplitNo, ValueOf(uint16(i)))
		keys.Set(KeySplitTensors, ValueOf(int32(len(specs))))
		keys.Set(KeySplitCount, ValueOf(uint16(len(shards)))) // last: the reference corrects it when all is cut
		if layouts[i], err = NewLayout(keys, shard, lo); err != nil {
			return nil, err
		}
	}
	return layouts, nil
}

// Distribute lays out a model in files of which each has a given number of the
// tensors, as the reference's quantizer does when it keeps the files of a model.
// As with [Split] the first has all keys and each the three of the split, here in
// the quantizer's order; a single file has none of the three.
func Distribute(m *Metadata, specs []Spec, counts []int, lo LayoutOptions) ([]*Layout, error) {
	total := 0
	for i, n := range counts {
		if n < 0 || n > len(specs)-total {
			return nil, fmt.Errorf("file %d of %d is to have %d tensors, %d are left", i+1, len(counts), n, len(specs)-total)
		}
		total += n
	}
	switch {
	case total < len(specs):
		return nil, fmt.Errorf("%d tensors are in none of the %d files", len(specs)-total, len(counts))
	case len(counts) == 0 || len(counts) > maxShards:
		return nil, fmt.Errorf("%d files; a split model has 1 to %d", len(counts), maxShards)
	}
	if err := checkTwice(specs); err != nil {
		return nil, err
	}
	layouts := make([]*Layout, len(counts))
	for i, n := range counts {
		keys := shardKeys(m, i)
		if len(counts) > 1 {
			keys.Set(KeySplitNo, ValueOf(uint16(i)))
			keys.Set(KeySplitCount, ValueOf(uint16(len(counts))))
			keys.Set(KeySplitTensors, ValueOf(int32(total)))
		}
		var err error
		if layouts[i], err = NewLayout(keys, specs[:n], lo); err != nil {
			return nil, err
		}
		specs = specs[n:]
	}
	return layouts, nil
}

// ConverterCounts says how many tensors each file has where llama.cpp's converter cuts a
// model: one more than the limit, or one that takes its file above the size in bytes, begins
// the next. 0 is no limit; without any it is nil, one file (gguf-py, gguf_writer.py).
func ConverterCounts(specs []Spec, maxBytes int64, maxTensors int) []int {
	if maxBytes == 0 && maxTensors == 0 {
		return nil
	}
	counts, bytes := []int{0}, int64(0)
	for _, s := range specs {
		last := len(counts) - 1
		full := maxTensors > 0 && counts[last] >= maxTensors || maxBytes > 0 && s.Size() > maxBytes-bytes
		if full && counts[last] > 0 { // the converter leaves the first file empty before a larger tensor
			counts, bytes, last = append(counts, 0), 0, last+1
		}
		counts[last]++
		bytes += s.Size()
	}
	return counts
}

// shardKeys returns the keys of one file, but for those of the split: all in the
// first, in the others an alignment that is not the default.
func shardKeys(m *Metadata, no int) *Metadata {
	if no == 0 {
		return m.Clone()
	}
	keys := &Metadata{}
	if n, err := m.alignment(); err == nil && n != DefaultAlignment {
		keys.Set(KeyAlignment, ValueOf(uint32(n)))
	}
	return keys
}

// cut divides the tensors among files.
func cut(specs []Spec, o SplitOptions, alignment int64) ([][]Spec, error) {
	byCount := o.MaxBytes == 0
	if byCount && o.MaxTensors == 0 {
		o.MaxTensors = defaultMaxTensors
	}
	var shards [][]Spec
	if o.FirstEmpty {
		shards = append(shards, nil)
	}
	first, size := 0, int64(0) // of the file being filled
	for i, s := range specs {
		n, err := sizeOf(s.Type, s.Shape)
		if err != nil {
			return nil, fmt.Errorf("tensor %s: %w", excerpt(s.Name), err)
		}
		padded, ok := pad(n, alignment)
		if !ok {
			return nil, fmt.Errorf("tensor %s: file size overflows", excerpt(s.Name))
		}
		full := !byCount && padded > o.MaxBytes-size
		if byCount {
			full = i%o.MaxTensors == 0
		}
		if full && i > 0 {
			shards = append(shards, specs[first:i])
			first, size = i, 0
		}
		size += padded // at most the limit or one tensor; without a limit it is not looked at
	}
	return append(shards, specs[first:]), nil
}

// checkTwice refuses names that are there twice, wherever the cuts are.
func checkTwice(specs []Spec) error {
	names := make(map[string]bool, len(specs))
	for _, s := range specs {
		if names[s.Name] {
			return fmt.Errorf("tensor %s: declared twice", excerpt(s.Name))
		}
		names[s.Name] = true
	}
	return nil
}
