package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"time"
)

//go:embed torch_merge.py
var torchScript string

// torch is a Python process that merges the same tensor, one run at a time when asked.
type torch struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	version string
}

// startTorch starts python with torch and gives it the tensor.
func startTorch(python string, t *mergeTensor) (*torch, error) {
	if python == "" {
		return nil, errors.New("no Python: --python PYTHON with torch installed (make bench-c PYTHON=PYTHON)")
	}
	cmd := exec.Command(python, "-c", torchScript, fmt.Sprint(t.size), fmt.Sprint(t.rank), fmt.Sprint(mergeScale))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting torch: %w", err)
	}
	p := &torch{cmd: cmd, in: in, out: bufio.NewReader(out)}
	for _, data := range [][]byte{t.w, t.l, t.r} {
		if _, err := in.Write(data); err != nil {
			p.close()
			return nil, noTorch(python, err)
		}
	}
	if p.version, err = p.line(); err != nil {
		p.close()
		return nil, noTorch(python, err)
	}
	return p, nil
}

// noTorch explains why a process ended early; Python has said more on standard error.
func noTorch(python string, err error) error {
	return fmt.Errorf("%s ran no torch (pip install torch numpy, or another --python): %w", python, err)
}

// line reads one line of an answer.
func (p *torch) line() (string, error) {
	line, err := p.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("torch went away: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// contender merges in place in one of the forms of the script.
func (p *torch) contender(form string, threads int) contender {
	return contender{threads: threads, timed: func(repeat int) (cost, error) {
		if _, err := fmt.Fprintf(p.in, "%s %d %d\n", form, threads, repeat); err != nil {
			return cost{}, fmt.Errorf("asking torch: %w", err)
		}
		answer, err := p.line()
		if err != nil {
			return cost{}, err
		}
		var wall, cpu float64
		if _, err := fmt.Sscan(answer, &wall, &cpu); err != nil {
			return cost{}, fmt.Errorf("answer of torch %q: %w", answer, err)
		}
		each := float64(time.Second) / float64(repeat)
		return cost{wall: time.Duration(wall * each), cpu: time.Duration(cpu * each)}, nil
	}}
}

// checkAgainst compares a merge by torch in float32 with ours: both sides must do the
// same work. Ours rounds once, PEFT's form rounds the update to bf16 and then the sum,
// so they differ by at most a half unit of each, 2^-8 of the numbers rounded, and a
// float32 rounding error, which the last half doubles generously.
func (p *torch) checkAgainst(t *mergeTensor) error {
	if _, err := fmt.Fprintln(p.in, "result 1 1"); err != nil {
		return fmt.Errorf("asking torch: %w", err)
	}
	answer := make([]byte, len(t.w))
	if _, err := io.ReadFull(p.out, answer); err != nil {
		return fmt.Errorf("reading torch's result: %w", err)
	}
	t.ours(1, false).run()
	before, theirs, own := decoded(t.w), decoded(answer), decoded(t.out)
	for i, x := range own {
		update := float64(x) - float64(before[i])
		limit := 0x1p-8 * (math.Abs(update) + math.Abs(float64(x)) + math.Abs(float64(theirs[i])) + math.Abs(float64(before[i])))
		if !(math.Abs(float64(x)-float64(theirs[i])) <= limit) {
			return fmt.Errorf("torch has %v at element %d, where we have %v", theirs[i], i, x)
		}
	}
	return nil
}

func decoded(x []byte) []float32 {
	y := make([]float32, len(x)/2)
	bf16.Decode32(y, x)
	return y
}

// close ends the process by closing its input.
func (p *torch) close() {
	p.in.Close()
	_ = p.cmd.Wait() // its exit says nothing about what it has measured
}
