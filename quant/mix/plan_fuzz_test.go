package mix_test

import (
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/quant/mix"
)

// FuzzPlan: no name, shape or number of a model makes a plan panic, hang or lose a tensor.
func FuzzPlan(f *testing.F) {
	f.Add("blk.0.ffn_down.weight\noutput.weight", uint32(15), int64(4), int64(8), int64(8), int64(2), int64(256), int64(3), int64(0))
	f.Add("blk.99999999999999999999.ffn_up.weight", uint32(10), int64(-1), int64(2), int64(0), int64(-1), int64(-5), int64(1<<62), int64(7))
	f.Add("abcde\nblk. 4.attn_v.weight", uint32(38), int64(0), int64(0), int64(1), int64(0), int64(0), int64(0), int64(1<<63-1))
	f.Fuzz(func(t *testing.T, names string, fileType uint32, layers, experts, heads, headsKV, columns, rows, weights int64) {
		var tensors []gguf.Spec
		matrix := make(map[string]int64)
		for i, name := range strings.Split(names, "\n") {
			typ := gguf.Type(uint32(i) * 7 % 50) // also types that do not exist
			tensors = append(tensors, spec(name, typ, rows, int64(i), columns), spec(name+".weight", gguf.F16, rows, columns))
			matrix[name] = weights
		}
		mix.Sort(tensors)
		m := mix.Model{Arch: "llama", Layers: layers, Experts: experts, Heads: heads, HeadsKV: headsKV}
		for _, o := range []mix.Options{{Type: mix.FileType(fileType)}, {Type: mix.FileType(fileType), Matrix: matrix, AllowRequantize: true}, {Type: mix.Copy}} {
			plan, err := mix.Plan(m, tensors, o)
			if plan == nil && err == nil || plan != nil && len(plan.Decisions) != len(tensors) {
				t.Fatalf("%v %v", plan, err)
			}
		}
	})
}
