package cli_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// digestModel is a model of testdata/golden/ggufquant: what it is made of, and what
// llama.cpp's quantizer makes of it. The script that made it tells the rules
// (testdata/gen/ggufquant_golden.py).
type digestModel struct {
	Name        string
	Keys        [][3]any
	Tensors     [][3]any
	SHA256      string
	Matrix      [][3]any
	Matrices    map[string]string
	Requantized *struct {
		File string
		Args []string
	}
	Split *struct {
		Counts []int
		SHA256 []string
	}
	Runs []digestRun
}

type digestRun struct {
	Source  string
	Args    []string
	Files   []string
	Refused bool
}

// words is the stream of 32-bit words of a name.
func words(name string, n int64) []uint32 {
	all := make([]uint32, 0, n+8)
	for i := 0; int64(len(all)) < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", name, i))
		for j := 0; j < len(sum); j += 4 {
			all = append(all, binary.LittleEndian.Uint32(sum[j:]))
		}
	}
	return all[:n]
}

// digestData returns the bytes of a tensor.
func digestData(s gguf.Spec) []byte {
	var data []byte
	for _, w := range words(s.Name, s.NumElements()) {
		f32 := w&0x807FFFFF | (116+w>>23&7)<<23
		switch s.Type {
		case gguf.F32:
			data = binary.LittleEndian.AppendUint32(data, f32)
		case gguf.BF16:
			data = binary.LittleEndian.AppendUint16(data, uint16(f32>>16))
		default:
			data = binary.LittleEndian.AppendUint16(data, uint16(w>>16&0x8000|(f32>>23&255-112)<<10|f32>>13&0x3FF))
		}
	}
	return data
}

// metadata returns the keys as a file has them.
func (m *digestModel) metadata() *gguf.Metadata {
	keys := new(gguf.Metadata)
	for _, k := range m.Keys {
		var v gguf.Value
		switch k[1] {
		case "str":
			v = gguf.ValueOf(k[2].(string))
		case "u32":
			v = gguf.ValueOf(uint32(k[2].(float64)))
		case "f32":
			v = gguf.ValueOf(float32(k[2].(float64)))
		}
		keys.Set(k[0].(string), v)
	}
	return keys
}

func (m *digestModel) specs(t *testing.T) []gguf.Spec {
	t.Helper()
	var specs []gguf.Spec
	for _, x := range m.Tensors {
		kind, err := gguf.ParseType(x[2].(string))
		if err != nil {
			t.Fatal(err)
		}
		s := gguf.Spec{Name: x[0].(string), Type: kind}
		for _, d := range slices.Backward(x[1].([]any)) {
			s.Shape = append(s.Shape, int64(d.(float64)))
		}
		specs = append(specs, s)
	}
	return specs
}

// writeLayout writes a file of a digest.
func writeLayout(t *testing.T, path string, l *gguf.Layout, data func(gguf.Spec) []byte, want string) {
	t.Helper()
	file := make([]byte, l.Size())
	copy(file, l.Header())
	for _, s := range l.Tensors() {
		copy(file[s.Offset:], data(s.Spec))
	}
	writeFile(t, path, file, want)
}

func writeFile(t *testing.T, path string, data []byte, want string) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := digestOf(t, path); got != want {
		t.Fatalf("%s: made with digest %s, want %s", path, got, want)
	}
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// write makes all inputs of the model in the working folder.
func (m *digestModel) write(t *testing.T) {
	t.Helper()
	specs := m.specs(t)
	l, err := gguf.NewLayout(m.metadata(), specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	writeLayout(t, m.Name+".gguf", l, digestData, m.SHA256)
	if m.Split != nil {
		parts, err := gguf.Distribute(m.metadata(), specs, m.Split.Counts, gguf.LayoutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range parts {
			writeLayout(t, gguf.ShardName("parts", i, len(parts)), l, digestData, m.Split.SHA256[i])
		}
	}
	if len(m.Matrices) > 0 {
		m.writeMatrices(t)
	}
}

// writeMatrices makes the importance matrix in both forms.
func (m *digestModel) writeMatrices(t *testing.T) {
	t.Helper()
	keys := new(gguf.Metadata)
	keys.Set("general.type", gguf.ValueOf("imatrix"))
	keys.Set("imatrix.datasets", gguf.ArrayOf([]string{strings.Repeat("d", 140), "second"}))
	keys.Set("imatrix.chunk_count", gguf.ValueOf(uint32(3)))
	keys.Set("imatrix.chunk_size", gguf.ValueOf(uint32(512)))
	legacy := binary.LittleEndian.AppendUint32(nil, uint32(len(m.Matrix)))
	data := make(map[string][]byte)
	var specs []gguf.Spec
	for i, e := range m.Matrix {
		name, columns, experts := e[0].(string), int64(e[1].(float64)), int64(e[2].(float64))
		var sums, counts []byte
		for _, w := range words("matrix "+name, columns*experts) {
			sums = binary.LittleEndian.AppendUint32(sums, w&0x7FFFFF|(116+w>>23&7)<<23)
		}
		for x := range experts {
			count := float32(37 + x)
			if x == 1 {
				count = 0
			}
			counts, _ = binary.Append(counts, binary.LittleEndian, count)
		}
		data[name+".in_sum2"], data[name+".counts"] = sums, counts
		specs = append(specs, gguf.Spec{Name: name + ".in_sum2", Type: gguf.F32, Shape: []int64{experts, columns}},
			gguf.Spec{Name: name + ".counts", Type: gguf.F32, Shape: []int64{experts, 1}})
		legacy = binary.LittleEndian.AppendUint32(legacy, uint32(len(name)))
		legacy = append(legacy, name...)
		legacy = binary.LittleEndian.AppendUint32(legacy, uint32(i%3*5))
		legacy = binary.LittleEndian.AppendUint32(legacy, uint32(columns*experts))
		legacy = append(legacy, sums...)
	}
	l, err := gguf.NewLayout(keys, specs, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	writeLayout(t, "m.gguf", l, func(s gguf.Spec) []byte { return data[s.Name] }, m.Matrices["m.gguf"])
	legacy = binary.LittleEndian.AppendUint32(legacy, 7)
	legacy = binary.LittleEndian.AppendUint32(legacy, 4)
	writeFile(t, "m.dat", append(legacy, "wiki"...), m.Matrices["m.dat"])
}

// quantizeTo runs the command on the arguments that the reference was run on, and
// returns the files that came out.
func quantizeTo(t *testing.T, source, out string, args []string, more ...string) (code int, files []string, stderr string) {
	t.Helper()
	last := len(args) - 1
	command := append([]string{"quantize", source, "-o", out, "--type", args[last], "-q"}, args[:last]...)
	code, _, stderr = run(fsatomic.OS{}, noEnv, append(command, more...)...)
	files, err := filepath.Glob(out)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(args, "--keep-split") {
		files, _ = filepath.Glob(filepath.Join(out, "*"))
	}
	return code, files, stderr
}

// Whole files are those of llama.cpp's quantizer, and what that refuses is refused:
// every file type with and without importance matrix, options, models in floats of
// all kinds, with experts, with rows and shapes at the edges, split, quantized before.
func TestQuantizeGGUFMatchesReference(t *testing.T) {
	var models []*digestModel
	data, err := os.ReadFile(filepath.Join("..", "..", "testdata", "golden", "ggufquant", "files.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &models); err != nil {
		t.Fatal(err)
	}
	if len(models) < 5 {
		t.Fatalf("%d models", len(models))
	}
	for _, m := range models {
		t.Run(m.Name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			m.write(t)
			if m.Requantized != nil {
				code, _, stderr := quantizeTo(t, m.Name+".gguf", m.Requantized.File, m.Requantized.Args)
				if code != 0 {
					t.Fatal(stderr)
				}
			}
			equal := 0
			for i, r := range m.Runs {
				// Memory and jobs decide where bands are cut, not what is in them.
				more := [][]string{{"--jobs", "1"}, {"--jobs", "3", "--memory", "8MiB"}, {}}[i%3]
				equal += m.check(t, r, more)
			}
			if equal < len(m.Runs)/2 {
				t.Errorf("only %d of %d files were compared", equal, len(m.Runs))
			}
		})
	}
}

// check compares one run, and returns 1 if it made equal files.
func (m *digestModel) check(t *testing.T, r digestRun, more []string) int {
	t.Helper()
	out := "out.gguf"
	if slices.Contains(r.Args, "--keep-split") {
		out = "out"
	}
	defer os.RemoveAll(out)
	code, files, stderr := quantizeTo(t, r.Source, out, r.Args, more...)
	switch {
	case r.Refused:
		if code != 4 || len(files) != 0 {
			t.Errorf("%s %q: exit %d, %q; the reference refuses it", r.Source, r.Args, code, files)
		}
		return 0
	case code != 0:
		t.Errorf("%s %q: exit %d: %s", r.Source, r.Args, code, stderr)
		return 0
	}
	var digests []string
	for _, f := range files {
		digests = append(digests, digestOf(t, f))
	}
	if !slices.Equal(digests, r.Files) {
		t.Errorf("%s %q: other files than the reference's", r.Source, r.Args)
		return 0
	}
	return 1
}

// The files of a run whose digests others recorded: one source, 21 types, with either form
// of the same importance matrix or none.
func TestQuantizeGGUFDigests(t *testing.T) {
	dir, err := filepath.Abs(filepath.Join("..", "..", "testdata", "golden", "ggufquant"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Source string
		Cases  []struct {
			Ftype   string
			Imatrix string
			SHA256  string `json:"file_sha256"`
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "digests.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	for from, to := range map[string]string{
		"source-f16.gguf": "source-f16.gguf", "imatrix-legacy.dat": "imatrix-legacy.dat", "../gguf/imatrix.gguf": "imatrix.gguf",
	} {
		data, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	equal := make(map[string]int)
	for _, c := range doc.Cases {
		args := []string{c.Ftype}
		if c.Imatrix != "" {
			args = []string{"--imatrix", c.Imatrix, c.Ftype}
		}
		equal[c.Ftype] += new(digestModel).check(t, digestRun{Source: doc.Source, Args: args, Files: []string{c.SHA256}}, nil)
		os.Remove("out.gguf")
	}
	if len(equal) != 21 || len(doc.Cases) != 55 {
		t.Errorf("%d cases of %d types: %v", len(doc.Cases), len(equal), slices.Sorted(maps.Keys(equal)))
	}
}

// TestResumeGGUF takes the disk away at some calls in turn and goes on: the output, one
// file or several, is that of a run that was not disturbed.
func TestResumeGGUF(t *testing.T) {
	dir, err := filepath.Abs(filepath.Join("..", "..", "testdata", "golden", "ggufquant"))
	if err != nil {
		t.Fatal(err)
	}
	source, matrix := filepath.Join(dir, "source-f16.gguf"), filepath.Join(dir, "imatrix-legacy.dat")
	for _, form := range []struct {
		out  string
		args []string
	}{{"out.gguf", nil}, {"out", []string{"--shard-tensors", "5"}}} {
		out := filepath.Join(t.TempDir(), form.out)
		command := append([]string{"quantize", source, "-o", out, "--type", "q4_k_m", "--imatrix", matrix, "--jobs", "1"}, form.args...)
		if code, _, stderr := runRecording(fsatomic.OS{}, command...); code != 0 {
			t.Fatal(stderr)
		}
		want := read(t, out)
		went := 0
		for k := 1; ; k += 3 {
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
			fsys := faultfs.New(fsatomic.OS{}, faultfs.FailFrom(k, syscall.EIO))
			if code, _, _ := runRecording(fsys, command...); code == 0 {
				break
			}
			if _, err := os.Stat(out); err == nil {
				break // it was in place already
			}
			code, _, stderr := runRecording(fsatomic.OS{}, append(command, "--resume")...)
			if code != 0 {
				t.Fatalf("call %d: %s", k, stderr)
			}
			if strings.Contains(stderr, "going on after") {
				went++
			}
			if got := read(t, out); !maps.Equal(got, want) {
				t.Errorf("call %d: other bytes", k)
			}
		}
		if went < 3 {
			t.Errorf("went on %d times", went)
		}
	}
}
