package checkpoint_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/quant/block"
)

// goldenGGUF holds files made by llama.cpp and its Python tools.
var goldenGGUF = filepath.Join("..", "..", "testdata", "golden", "gguf")

// pair is a key with its value.
type pair struct {
	key   string
	value gguf.Value
}

// blob is a tensor of GGUF with its bytes.
type blob struct {
	gguf.Spec
	data []byte
}

// ggufFile is a file with the keys and tensors.
func ggufFile(t testing.TB, keys []pair, blobs ...blob) []byte {
	t.Helper()
	var m gguf.Metadata
	for _, k := range keys {
		m.Set(k.key, k.value)
	}
	specs := make([]gguf.Spec, len(blobs))
	for i, b := range blobs {
		specs[i] = b.Spec
	}
	l, err := gguf.NewLayout(&m, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, l.Size())
	copy(data, l.Header())
	for i, placed := range l.Tensors() {
		if copy(data[placed.Offset:], blobs[i].data) != int(placed.Size()) {
			t.Fatalf("%s: %d bytes, want %d", placed.Name, len(blobs[i].data), placed.Size())
		}
	}
	return data
}

// randomBlocks is a tensor of random bytes whose scales are finite.
func randomBlocks(rng *rand.Rand, name string, kind gguf.Type, shape ...int64) blob {
	b := blob{Spec: gguf.Spec{Name: name, Type: kind, Shape: shape}}
	b.data = make([]byte, b.Size())
	size := int(kind.TypeSize())
	for at := 0; at < len(b.data); at += size {
		p := b.data[at:][:size]
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if _, found := block.GGML(kind).NonFinite(p); found && kind.BlockSize() > 1 {
			at -= size
		}
	}
	return b
}

// decoded is what the codec of the type makes of the bytes, as F32.
func (b blob) decoded(t testing.TB) []byte {
	t.Helper()
	numbers := make([]float32, b.NumElements())
	if err := block.GGML(b.Type).Decode(numbers, b.data); err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, x := range numbers {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(x))
	}
	return out
}

// TestGGUFTypes guards that formats and codecs mean the same by the number of a
// type: the checkpoint takes one for the other.
func TestGGUFTypes(t *testing.T) {
	for _, kind := range gguf.Types() {
		codec := block.GGML(kind)
		if !codec.Known() || !strings.EqualFold(codec.String(), kind.String()) ||
			int64(codec.BlockElements()) != kind.BlockSize() || int64(codec.BlockBytes()) != kind.TypeSize() {
			t.Errorf("type %d is %s of %d elements in %d bytes, the codec is %s", kind, kind, kind.BlockSize(), kind.TypeSize(), codec)
		}
		if _, plain := kind.DType(); !plain && codec.CanDecode() != nil {
			t.Errorf("%s: %v", kind, codec.CanDecode())
		}
	}
}

// TestGGUFEveryType reads a tensor of each type: plain ones are their bytes, those
// in blocks what the codec makes of theirs, at any cut.
func TestGGUFEveryType(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var blobs []blob
	for _, kind := range gguf.Types() {
		blobs = append(blobs, randomBlocks(rng, kind.String(), kind, 2, 3, 2*kind.BlockSize()))
	}
	m := mustOpen(t, writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, nil, blobs...)), hfrepo.Cache{})
	if got := len(m.Specs()); got != len(blobs) || len(m.RawSpecs()) != got {
		t.Fatalf("%d tensors, %d as stored, want %d", got, len(m.RawSpecs()), len(blobs))
	}
	for i, b := range blobs {
		want := tensor.Spec{Name: b.Name, DType: tensor.F32, Shape: b.Shape}
		raw := tensor.Spec{Name: b.Name, DType: tensor.U8, Shape: tensor.Shape{2, 3, 2 * b.Type.TypeSize()}}
		stored, isDerived := m.Derived(b.Name)
		values := b.data
		if d, plain := b.Type.DType(); plain {
			want.DType = d
			raw = want
		} else {
			values = b.decoded(t)
			if stored.Kind != b.Type.String() || stored.Stored != b.Size() || int64(stored.BlockSize) != b.Type.BlockSize() || !slices.Equal(stored.Parts, []string{b.Name}) {
				t.Errorf("%s: %+v", b.Name, stored)
			}
		}
		if isDerived == (want.DType != tensor.F32 || b.Type == gguf.F32) {
			t.Errorf("%s: derived is %v", b.Name, isDerived)
		}
		if got := m.Specs()[i]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", b.Name, got, want)
		}
		if got := m.RawSpecs()[i]; fmt.Sprint(got) != fmt.Sprint(raw) || got.Size() != b.Size() {
			t.Errorf("%s: stored as %v, want %v", b.Name, got, raw)
		}
		if got, ok := m.Lookup(b.Name); !ok || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: found %v", b.Name, got)
		}
		checkCuts(t, m, b.Name, values)
	}
	if kinds := m.Quantization(); len(kinds) != len(blobs)-8 || kinds["q4_K"] != 1 {
		t.Errorf("kinds %v", kinds) // 8 types are plain
	}
}

// checkCuts reads ranges of a tensor from several goroutines: around every multiple
// of 4 bytes near a border of blocks, and at random.
func checkCuts(t *testing.T, m *checkpoint.Model, name string, want []byte) {
	t.Helper()
	src, err := m.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(want))
	read := func(off, n int64) {
		p := make([]byte, n)
		got, err := src.ReadAt(p, off)
		end := min(off+n, size)
		if off >= size {
			end = off
		}
		if int64(got) != end-off || !bytes.Equal(p[:got], want[min(off, size):][:got]) {
			t.Errorf("%s: %d of %d bytes at %d, or others than the codec's", name, got, n, off)
		}
		if past := off+n > size; past != (err == io.EOF) || err != nil && err != io.EOF {
			t.Errorf("%s: %d bytes at %d of %d: %v", name, n, off, size, err)
		}
	}
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 3))
			for range 40 {
				read(rng.Int64N(size+3), 1+rng.Int64N([]int64{6, 200, size + 9}[rng.IntN(3)]))
			}
		})
	}
	for _, off := range []int64{0, 1, 3, 4, 127, 128, 1023, 1024, 1025, size - 5, size - 1} {
		for _, n := range []int64{1, 2, 4, 5, 128, 1024, 1030} {
			read(max(off, 0), n)
		}
	}
	wg.Wait()
	if _, err := src.ReadAt(make([]byte, 1), -1); err == nil {
		t.Errorf("%s: reads in front of the beginning", name)
	}
}

// TestGGUFLongTensor reads across the pieces that a tensor is decoded in.
func TestGGUFLongTensor(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, kind := range []gguf.Type{gguf.Q4K, gguf.Q8_0, gguf.IQ4NL} {
		b := randomBlocks(rng, "w", kind, 150, 3*256)
		m := mustOpen(t, writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, nil, b)), hfrepo.Cache{})
		want := b.decoded(t)
		if got := readAll(t, m, "w", int64(len(want))); !bytes.Equal(got, want) {
			t.Errorf("%s: the whole differs", kind)
		}
		checkCuts(t, m, "w", want)
	}
}

// TestGGUFTwin decodes a file of llama.cpp's quantizer by the formula of its type,
// w = d q, with d in half precision in front of 32 codes.
func TestGGUFTwin(t *testing.T) {
	m := mustOpen(t, filepath.Join(goldenGGUF, "models", "llama", "base-q8_0.gguf"), hfrepo.Cache{})
	f16, _ := block.For(tensor.F16)
	seen := 0
	for _, s := range m.Specs() {
		if _, ok := m.Derived(s.Name); !ok {
			continue
		}
		seen++
		section, err := m.GGUF().Section(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := io.ReadAll(io.NewSectionReader(section, 0, section.Size()))
		if err != nil {
			t.Fatal(err)
		}
		got := readAll(t, m, s.Name, s.Size())
		for i := range s.NumElements() {
			d := make([]float32, 1)
			f16.Decode32(d, stored[i/32*34:][:2])
			want := d[0] * float32(int8(stored[i/32*34+2+i%32]))
			if x := math.Float32frombits(binary.LittleEndian.Uint32(got[4*i:])); x != want {
				t.Fatalf("%s: element %d is %g, want %g", s.Name, i, x, want)
			}
		}
	}
	if seen != 16 {
		t.Errorf("%d tensors in blocks, the quantizer made 16", seen)
	}
}

// copyGolden copies files of the golden data into a folder.
func copyGolden(t *testing.T, dir string, names map[string]string) {
	t.Helper()
	for from, to := range names {
		data, err := os.ReadFile(filepath.Join(goldenGGUF, from))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, dir, to, data)
	}
}

// splitFolder is a folder with the golden model in four files.
func splitFolder(t *testing.T, dir string) string {
	t.Helper()
	for i := range 4 {
		name := gguf.ShardName("tiny", i, 4)
		copyGolden(t, dir, map[string]string{"models/split/" + name: name})
	}
	return dir
}

// TestGGUFOpen guards what is found under each way to name a GGUF model, and that it
// is always the same model.
func TestGGUFOpen(t *testing.T) {
	dir := t.TempDir()
	const single = "models/llama/expected-f16.gguf"
	copyGolden(t, dir, map[string]string{
		single: "file.gguf",
	})
	copyGolden(t, dir, map[string]string{single: "CAPITALS.GGUF"})
	copyGolden(t, dir, map[string]string{single: "blobs/sha256-0123"})
	copyGolden(t, dir, map[string]string{single: "folder/model-F16.gguf"})
	writeFile(t, dir, "folder/README.md", []byte("# model"))
	writeFile(t, dir, "folder/config.json", []byte("{}"))
	writeFile(t, dir, "folder/pytorch_model.bin", nil)
	splitFolder(t, filepath.Join(dir, "split"))
	cache := hub(t, map[string][]byte{"x.gguf": must(os.ReadFile(filepath.Join(goldenGGUF, single)))})

	whole := mustOpen(t, filepath.Join(dir, "file.gguf"), hfrepo.Cache{})
	for _, c := range []struct {
		path, name string
		isFolder   bool
		files      string
	}{
		{"file.gguf", "file.gguf", false, "file.gguf"},
		{"CAPITALS.GGUF", "CAPITALS.GGUF", false, "CAPITALS.GGUF"},
		{"blobs/sha256-0123", "sha256-0123", false, "sha256-0123"},
		{"folder", "folder", true, "config.json model-F16.gguf"},
		{"split", "split", true, shards},
		{"split/tiny-00001-of-00004.gguf", "tiny-00001-of-00004.gguf", false, shards},
		{"split/tiny-00004-of-00004.gguf", "tiny-00004-of-00004.gguf", false, shards},
		{"org/name", "org/name", true, "x.gguf"},
	} {
		t.Run(c.path, func(t *testing.T) {
			path := c.path
			if path != "org/name" {
				path = filepath.Join(dir, path)
			}
			m := mustOpen(t, path, cache)
			if m.GGUF() == nil || m.IsAdapter() || len(m.Metadata()) != 0 || m.Name != c.name || m.IsFolder != c.isFolder {
				t.Errorf("GGUF %v, name %q, folder %v, adapter %v, metadata %v", m.GGUF(), m.Name, m.IsFolder, m.IsAdapter(), m.Metadata())
			}
			var files []string
			for _, f := range m.Files() {
				files = append(files, f.Name)
				if info, err := os.Stat(f.Path); err != nil || info.Size() != f.Size {
					t.Errorf("%s: size %d, %v", f.Name, f.Size, err)
				}
			}
			if got := strings.Join(files, " "); got != c.files {
				t.Errorf("files %s, want %s", got, c.files)
			}
			if names(m) != names(whole) {
				t.Errorf("tensors %s", names(m))
			}
			for _, s := range m.Specs() {
				want := readAll(t, whole, s.Name, s.Size())
				if got := readAll(t, m, s.Name, s.Size()); !bytes.Equal(got, want) {
					t.Errorf("%s: other bytes", s.Name)
				}
				checkOrigin(t, m, s, want)
			}
			if err := m.CheckUnchanged(); err != nil {
				t.Error(err)
			}
		})
	}
}

const shards = "tiny-00001-of-00004.gguf tiny-00002-of-00004.gguf tiny-00003-of-00004.gguf tiny-00004-of-00004.gguf"

func must(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}

// checkOrigin looks for the bytes of a tensor where they are said to be.
func checkOrigin(t *testing.T, m *checkpoint.Model, s tensor.Spec, want []byte) {
	t.Helper()
	name, offset := m.Origin(s.Name)
	for _, f := range m.Files() {
		if f.Name == name && !bytes.Equal(must(os.ReadFile(f.Path))[offset:][:s.Size()], want) {
			t.Errorf("%s: not at %d of %s", s.Name, offset, name)
		}
	}
}

// TestGGUFFolderPrefersSafetensors guards the order of containers in a folder.
func TestGGUFFolderPrefersSafetensors(t *testing.T) {
	dir := t.TempDir()
	copyGolden(t, dir, map[string]string{"models/llama/expected-f16.gguf": "m.gguf"})
	writeFile(t, dir, "model.safetensors", weights(t, nil, spec("w", 3)))
	if m := mustOpen(t, dir, hfrepo.Cache{}); m.GGUF() != nil || names(m) != "w" {
		t.Errorf("tensors %s", names(m))
	}
}

// TestGGUFChanged guards that every file of a split model counts for its identity and
// is looked at again.
func TestGGUFChanged(t *testing.T) {
	for i := range 4 {
		dir := splitFolder(t, t.TempDir())
		name := gguf.ShardName("tiny", i, 4)
		m := mustOpen(t, dir, hfrepo.Cache{})
		before := m.Identity()
		now := time.Now().Add(time.Hour)
		if err := os.Chtimes(filepath.Join(dir, name), now, now); err != nil {
			t.Fatal(err)
		}
		checkInputError(t, m.CheckUnchanged(), name, "changed")
		if mustOpen(t, dir, hfrepo.Cache{}).Identity() == before {
			t.Errorf("%s: the identity is the same", name)
		}
	}
}

// TestGGUFClosed guards that closing closes every file.
func TestGGUFClosed(t *testing.T) {
	m := mustOpen(t, splitFolder(t, t.TempDir()), hfrepo.Cache{})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, s := range m.Specs() {
		src, err := m.Open(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := src.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
}

// TestGGUFNonFinite guards that a scale which is not finite is found when its block is
// read, and no other block is kept from being read.
func TestGGUFNonFinite(t *testing.T) {
	for kind, scale := range map[gguf.Type]int{gguf.Q8_0: 0, gguf.Q4K: 2, gguf.Q6K: 208, gguf.MXFP4: 0} {
		for _, bits := range []uint16{0x7c00, 0xfc00, 0x7e01, 0xffff} {
			b := randomBlocks(rand.New(rand.NewPCG(7, 8)), "blk.0.ffn_up.weight", kind, 3, 4*kind.BlockSize())
			bad := b.data[7*kind.TypeSize():][:kind.TypeSize()]
			binary.LittleEndian.PutUint16(bad[scale:], bits)
			if kind == gguf.MXFP4 {
				bad[0] = 0xff // its scale is one byte
			}
			m := mustOpen(t, writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, nil, b)), hfrepo.Cache{})
			src, err := m.Open(b.Name)
			if err != nil {
				t.Fatal(err)
			}
			spec, _ := m.Lookup(b.Name)
			width := 4 * kind.BlockSize() // bytes of the numbers of a block
			for _, c := range []struct {
				off, n int64
				ok     bool
			}{
				{0, 7 * width, true}, {8 * width, 4 * width, true}, {0, 7*width + 1, false}, {8*width - 1, 1, false}, {0, spec.Size(), false},
			} {
				_, err := src.ReadAt(make([]byte, c.n), c.off)
				if c.ok && err != nil {
					t.Errorf("%s: %d bytes at %d: %v", kind, c.n, c.off, err)
				} else if !c.ok {
					checkInputError(t, err, "m.gguf", `tensor "blk.0.ffn_up.weight": block 7`, "not finite")
				}
			}
		}
	}
}

// TestGGUFCut guards the error for a file that is cut short after it was opened.
func TestGGUFCut(t *testing.T) {
	b := randomBlocks(rand.New(rand.NewPCG(9, 9)), "w", gguf.Q4_0, 64, 64)
	path := writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, nil, b))
	m := mustOpen(t, path, hfrepo.Cache{})
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	src, _ := m.Open("w")
	if _, err := src.ReadAt(make([]byte, 64*64*4), 0); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), `"w"`) {
		t.Errorf("error %v", err)
	}
	checkInputError(t, m.CheckUnchanged(), "m.gguf", "changed")
}

// TestGGUFMemory guards that neither opening nor reading a large tensor takes more
// memory than a piece of it: 2 GiB of numbers in a file that is a hole.
func TestGGUFMemory(t *testing.T) {
	const allowed = 8 << 20 // pieces of 32768 numbers as codes, floats and bytes, a few times over
	s := gguf.Spec{Name: "w", Type: gguf.Q4_0, Shape: tensor.Shape{1 << 17, 1 << 12}}
	l, err := gguf.NewLayout(new(gguf.Metadata), []gguf.Spec{s}, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path := writeFile(t, t.TempDir(), "m.gguf", l.Header())
	if err := os.Truncate(path, l.Size()); err != nil {
		t.Skip(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m := mustOpen(t, path, hfrepo.Cache{})
	src, err := m.Open("w")
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for _, off := range []int64{0, 1<<30 + 1, 1<<31 - 1<<20} {
		if _, err := src.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > allowed {
		t.Errorf("%d bytes were allocated", took)
	}
}

// TestGGUFRefused has what is no GGUF model, each with what the message must say.
func TestGGUFRefused(t *testing.T) {
	good := must(os.ReadFile(filepath.Join(goldenGGUF, "models", "llama", "expected-f16.gguf")))
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir string)
		open string
		want []string
	}{
		{"cut short", func(t *testing.T, dir string) { writeFile(t, dir, "m.gguf", good[:len(good)-64]) }, "m.gguf", []string{"m.gguf: tensor", "run past the end"}},
		{"empty", func(t *testing.T, dir string) { writeFile(t, dir, "m.gguf", nil) }, "m.gguf", []string{"m.gguf: file is empty"}},
		{"another format in capitals", func(t *testing.T, dir string) { writeFile(t, dir, "M.GGUF", []byte("tjgg")) }, "M.GGUF", []string{"M.GGUF: ", "GGJT"}},
		{"pointer", func(t *testing.T, dir string) {
			writeFile(t, dir, "m.gguf", []byte("version https://git-lfs.github.com/spec/v1\n"))
		}, "m.gguf", []string{"Git LFS pointer"}},
		{"not there", func(*testing.T, string) {}, "m.gguf", []string{"m.gguf: no such file"}},
		{"in a folder", func(t *testing.T, dir string) { writeFile(t, dir, "m/x.gguf", good[:100]) }, "m", []string{"m/x.gguf: "}},
		{"two models", func(t *testing.T, dir string) {
			writeFile(t, dir, "m/a.gguf", good)
			writeFile(t, dir, "m/b.gguf", good)
		}, "m", []string{"m: 2 models", `"a.gguf" and "b.gguf"; name one`}},
		{"a folder of that name", func(t *testing.T, dir string) { writeFile(t, dir, "m/x.gguf/y", nil) }, "m", []string{"m: no .gguf file"}},
		{"a link to a folder", func(t *testing.T, dir string) {
			writeFile(t, dir, "m/x/y", nil)
			if err := os.Symlink("x", filepath.Join(dir, "m", "x.gguf")); err != nil {
				t.Skip(err)
			}
		}, "m", []string{"m/x.gguf: open: folder, not a regular file"}},
		{"shard missing", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(splitFolder(t, dir), "tiny-00003-of-00004.gguf"))
		}, "tiny-00001-of-00004.gguf", []string{"1 of 4 files of the model are missing", "tiny-00003-of-00004.gguf"}},
		{"shard cut", func(t *testing.T, dir string) {
			os.Truncate(filepath.Join(splitFolder(t, dir), "tiny-00003-of-00004.gguf"), 700)
		}, "tiny-00001-of-00004.gguf", []string{"tiny-00003-of-00004.gguf: tensor"}},
		{"shard is a folder", func(t *testing.T, dir string) {
			path := filepath.Join(splitFolder(t, dir), "tiny-00002-of-00004.gguf")
			os.Remove(path)
			os.Mkdir(path, 0o777)
		}, "tiny-00001-of-00004.gguf", []string{"tiny-00002-of-00004.gguf: open: folder"}},
		{"shard under another name", func(t *testing.T, dir string) {
			copyGolden(t, dir, map[string]string{"models/split/tiny-00001-of-00004.gguf": "m.gguf"})
		}, "m.gguf", []string{"m.gguf: is file 1 of a model of 4 files"}},
		{"in an index", func(t *testing.T, dir string) {
			writeFile(t, dir, "m/model.safetensors.index.json", []byte(`{"weight_map":{"output.weight":"m.gguf"}}`))
			writeFile(t, dir, "m/m.gguf", good)
		}, "m", []string{"m.gguf", "is not a .safetensors file"}},
		{"as safetensors", func(t *testing.T, dir string) { writeFile(t, dir, "m.safetensors", good) }, "m.safetensors", []string{"file is a GGUF file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(t, dir)
			m, err := checkpoint.Open(filepath.Join(dir, c.open), hfrepo.Cache{Root: dir})
			if err == nil {
				m.Close()
				t.Fatal("accepted")
			}
			checkInputError(t, err, c.want...)
			if n := strings.Count(err.Error(), dir); n != 1 {
				t.Errorf("the folder is named %d times: %q", n, err)
			}
		})
	}
}

// TestGGUFNotRepository guards that the path of a GGUF file that is not there is not
// looked for on the hub.
func TestGGUFNotRepository(t *testing.T) {
	t.Chdir(t.TempDir())
	_, err := checkpoint.Open("org/name.gguf", hfrepo.Cache{Root: "."})
	checkInputError(t, err, "org/name.gguf: no such file")
}

// TestGGUFNamesAlone guards that names which mean a quantized tensor elsewhere mean
// nothing in GGUF.
func TestGGUFNamesAlone(t *testing.T) {
	one := func(name string, kind gguf.Type) blob {
		b := blob{Spec: gguf.Spec{Name: name, Type: kind, Shape: tensor.Shape{2, 32}}}
		b.data = make([]byte, b.Size())
		return b
	}
	m := mustOpen(t, writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, nil,
		one("a.weight", gguf.I8), one("a.SCB", gguf.F32), one("b", gguf.Q8_0), one("b.absmax", gguf.Q4_0),
		one("c.quant_state.bitsandbytes__nf4", gguf.Q8_0), one("c.quant_map", gguf.F32))), hfrepo.Cache{})
	if got := names(m); got != "a.weight a.SCB b b.absmax c.quant_state.bitsandbytes__nf4 c.quant_map" {
		t.Errorf("tensors %s", got)
	}
	if got := m.Quantization(); len(got) != 2 || got["q8_0"] != 2 || got["q4_0"] != 1 {
		t.Errorf("kinds %v", got)
	}
}

// TestGGUFEmpty reads a tensor without elements.
func TestGGUFEmpty(t *testing.T) {
	m := mustOpen(t, writeFile(t, t.TempDir(), "m.gguf", ggufFile(t, nil,
		blob{Spec: gguf.Spec{Name: "rows", Type: gguf.Q4_0, Shape: tensor.Shape{0, 32}}},
		blob{Spec: gguf.Spec{Name: "cols", Type: gguf.Q4_0, Shape: tensor.Shape{1 << 40, 0}}},
		blob{Spec: gguf.Spec{Name: "plain", Type: gguf.F16, Shape: tensor.Shape{4, 0}}})), hfrepo.Cache{})
	for _, s := range m.Specs() {
		src, err := m.Open(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := src.ReadAt(make([]byte, 1), 0); s.Size() != 0 || n != 0 || err != io.EOF {
			t.Errorf("%s: size %d, %d bytes, %v", s.Name, s.Size(), n, err)
		}
	}
}

// TestRefuseGGUF guards the refusals for who can't use a GGUF model.
func TestRefuseGGUF(t *testing.T) {
	lora := filepath.Join(goldenGGUF, "models", "llama", "lora-all", "expected-f16.gguf")
	m := mustOpen(t, lora, hfrepo.Cache{})
	checkInputError(t, m.RefuseGGUF("a dance with"), lora+": a dance with a GGUF file")
	dir := t.TempDir()
	writeFile(t, dir, "m.safetensors", weights(t, nil, spec("w", 1)))
	m = mustOpen(t, filepath.Join(dir, "m.safetensors"), hfrepo.Cache{})
	if err := m.RefuseGGUF("a dance with"); err != nil || m.GGUF() != nil {
		t.Errorf("refused: %v", err)
	}
}

// BenchmarkGGUF reads tensors in blocks, and decodes the same bytes with the codec
// alone. Bytes are those of the numbers.
func BenchmarkGGUF(b *testing.B) {
	for _, kind := range []gguf.Type{gguf.Q8_0, gguf.Q4K, gguf.Q6K, gguf.IQ2XXS} {
		w := randomBlocks(rand.New(rand.NewPCG(1, 1)), "w", kind, 256, 4096)
		path := filepath.Join(b.TempDir(), "m.gguf")
		if err := os.WriteFile(path, ggufFile(b, nil, w), 0o666); err != nil {
			b.Fatal(err)
		}
		m, err := checkpoint.Open(path, hfrepo.Cache{})
		if err != nil {
			b.Fatal(err)
		}
		defer m.Close()
		src, err := m.Open("w")
		if err != nil {
			b.Fatal(err)
		}
		b.Run("read/"+kind.String(), func(b *testing.B) {
			p := make([]byte, 4*w.NumElements())
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if _, err := src.ReadAt(p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("codec/"+kind.String(), func(b *testing.B) {
			x := make([]float32, w.NumElements())
			b.SetBytes(int64(4 * len(x)))
			for b.Loop() {
				if err := block.GGML(kind).Decode(x, w.data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// FuzzGGUF opens any bytes as a model: no panic, errors that name the file, and
// tensors that can be read or say why not.
func FuzzGGUF(f *testing.F) {
	for _, pattern := range []string{"parser/*.gguf", "python/*.gguf", "imatrix.gguf", "models/llama/*/*.gguf"} {
		files, err := filepath.Glob(filepath.Join(goldenGGUF, pattern))
		if err != nil || len(files) == 0 {
			f.Fatal(pattern, err)
		}
		for _, path := range files {
			f.Add(must(os.ReadFile(path)))
		}
	}
	path := filepath.Join(f.TempDir(), "m.gguf")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		m, err := checkpoint.Open(path, hfrepo.Cache{})
		if err != nil {
			checkInputError(t, err, "m.gguf: ")
			return
		}
		defer m.Close()
		if _, ok := m.GGUFSummary(); !ok {
			t.Error("no summary")
		}
		for _, s := range m.Specs() {
			src, err := m.Open(s.Name)
			if err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{0, max(s.Size()-3, 0)} {
				if n, err := src.ReadAt(make([]byte, 7), off); err != nil && err != io.EOF {
					checkInputError(t, err, "m.gguf: ", "not finite")
				} else if int64(n) != min(7, s.Size()-off) {
					t.Errorf("%q: %d bytes at %d of %d", s.Name, n, off, s.Size())
				}
			}
		}
	})
}
