package safetensors_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/formats/safetensors"
)

// bloatSize is a fifth of the largest header. What holds for it holds for the
// largest, since cost per byte does not grow.
const bloatSize = 20_000_000

// bloatFile writes a file whose header is as long as bloatSize allows, with
// members made by entry, and as many data bytes as members if withData.
func bloatFile(t *testing.T, prefix, suffix string, withData bool, entry func(i int) string) string {
	t.Helper()
	var b strings.Builder
	b.Grow(bloatSize)
	b.WriteString(prefix)
	count := 0
	for {
		e := entry(count)
		if b.Len()+len(e)+len(suffix)+1 > bloatSize {
			break
		}
		if count > 0 {
			b.WriteByte(',')
		}
		b.WriteString(e)
		count++
	}
	b.WriteString(suffix)
	path := filepath.Join(t.TempDir(), "bloat.safetensors")
	size := int64(8 + b.Len())
	if withData {
		size += int64(count)
	}
	head := binary.LittleEndian.AppendUint64(nil, uint64(b.Len()))
	if err := os.WriteFile(path, append(head, b.String()...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// A header may describe a million tensors of one byte each; it must neither
// take more than 12 times its size in memory nor long. The other headers are
// built to get the most memory or time out of a byte.
func TestHeaderBloat(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("parses headers of 20 MB, and measures time and memory")
	}
	empty := func(i int) string {
		return fmt.Sprintf(`"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`, i*7919%(1<<20))
	}
	zeros := strings.Repeat("0,", 4095) + "0"
	tests := []struct {
		name           string
		prefix, suffix string
		withData       bool
		entry          func(i int) string
		minTensors     int
	}{
		{"one byte each", "{", "}", true, func(i int) string {
			return fmt.Sprintf(`"t%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}`, i, i, i+1)
		}, 290_000},
		{"shortest entries, out of order", "{", "}", false, empty, 350_000},
		{"many dimensions", "{", "}", false, func(i int) string {
			return fmt.Sprintf(`"%d":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}`, i, zeros)
		}, 2_000},
		{"shortest pairs", `{"__metadata__":{`, `}}`, false, func(i int) string { return fmt.Sprintf(`"%x":""`, i) }, 0},
		{"braces in text", `{"__metadata__":{`, `}}`, false, func(i int) string {
			return fmt.Sprintf(`"%d":"%s"`, i, strings.Repeat("{", 1000))
		}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := bloatFile(t, test.prefix, test.suffix, test.withData, test.entry)
			runtime.GC()
			start := time.Now()
			var f *safetensors.File
			var err error
			took := allocated(func() { f, err = safetensors.Open(path) })
			duration := time.Since(start)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if n := len(f.Tensors()); n < test.minTensors {
				t.Errorf("%d tensors, want at least %d", n, test.minTensors)
			}
			t.Logf("%d tensors: %v, %.1f bytes of memory a byte", len(f.Tensors()), duration, float64(took)/bloatSize)
			if took > 12*bloatSize {
				t.Errorf("took %d bytes of memory, want at most %d", took, 12*bloatSize)
			}
			// A fifth of 5 s would be the rule; machines of tests are slow.
			if duration > 5*time.Second {
				t.Errorf("took %v", duration)
			}
		})
	}
}
