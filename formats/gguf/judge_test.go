package gguf_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
)

var judgePath = flag.String("judge", "", "program built by testdata/gen/gguf_golden.py, to ask about mutated files")

// judge returns what the real reader of llama.cpp says to each file: to its
// header, to the whole, and its message.
func judge(t *testing.T, files [][]byte) [][]string {
	t.Helper()
	if *judgePath == "" {
		t.Skip("asks the reference itself: needs -judge")
	}
	var input bytes.Buffer
	for _, data := range files {
		input.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(data))))
		input.Write(data)
	}
	cmd := exec.CommandContext(t.Context(), *judgePath)
	cmd.Stdin = &input
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var verdicts [][]string
	for line := range strings.Lines(string(out)) {
		verdicts = append(verdicts, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	if len(verdicts) != len(files) {
		t.Fatalf("%d verdicts on %d files", len(verdicts), len(files))
	}
	return verdicts
}

// Files with a few bytes changed get the reference's verdict, or a stricter one
// for a reason that is listed.
func TestJudgeOfMutations(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	var pool [][]byte
	small := seeds(t)
	for _, name := range slices.Sorted(maps.Keys(small)) { // in one order, as the numbers are seeded
		pool = append(pool, small[name])
	}
	for _, c := range goldenCases(t) {
		if data := c.bytes(t); len(data) < 2048 && c.Header == "accept" {
			pool = append(pool, data)
		}
	}
	var files [][]byte
	for range 20_000 {
		files = append(files, mutate(random, pool[random.IntN(len(pool))]))
	}
	tally := map[string]int{}
	for i, verdict := range judge(t, files) {
		f, err := open(files[i])
		ours := "accept"
		switch {
		case err == nil && verdict[0] != "accept":
			t.Errorf("accepted; the reference says %s: %q", verdict, files[i])
		case err == nil && verdict[1] != "accept" && f.MissingPadding() == 0:
			t.Errorf("accepted; the reference can't load it: %q", files[i])
		case err != nil && verdict[0] == "accept" && !isStricter(err):
			t.Errorf("refused: %v; the reference accepts it: %q", err, files[i])
		}
		if err != nil {
			ours = "reject"
		}
		tally[verdict[0]+", we "+ours]++
	}
	t.Logf("reference's verdict and ours: %v", tally)
}

// What is laid out is loaded by the reference, with its data.
func TestJudgeOfLayouts(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	var files [][]byte
	for range 1000 {
		m, declared, data, _ := randomModel(random)
		files = append(files, assemble(t, layout(t, m, declared...), func(s gguf.Spec) []byte { return data[s.Name] }))
	}
	for i, verdict := range judge(t, files) {
		if verdict[0] != "accept" || verdict[1] != "accept" {
			t.Errorf("the reference says %s: %q", verdict, files[i])
		}
	}
}

// mutate changes a few bytes, mostly to values that mean something.
func mutate(random *rand.Rand, data []byte) []byte {
	data = bytes.Clone(data)
	for range 1 + random.IntN(3) {
		if len(data) == 0 {
			return data
		}
		at := random.IntN(min(len(data), 400))
		switch random.IntN(5) {
		case 0:
			data[at] = byte(random.Uint32())
		case 1:
			data[at] = []byte{0, 1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 31, 32, 63, 64, 127, 128, 255}[random.IntN(18)]
		case 2:
			data[at] += byte(random.IntN(5) - 2)
		case 3:
			data = data[:random.IntN(len(data)+1)]
		case 4:
			n := min(random.IntN(9), len(data)-at)
			data = append(data[:at:at], data[at+n:]...)
		}
	}
	return data
}
