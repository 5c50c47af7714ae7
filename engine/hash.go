package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/plan"
)

// hashInputs returns the SHA-256 of every file of every input. It runs beside
// the bands, up to jobs files at a time, and reads what they are about to read
// or have just read, so that the disk gives each byte once.
func hashInputs(ctx context.Context, p *plan.Plan, jobs int, near *pace) (map[string]string, error) {
	var mu sync.Mutex
	sums := make(map[string]string)
	if p.Unhashed {
		return sums, nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	var before int64 // bytes of the files in front
	for _, in := range p.Inputs {
		for _, f := range in.Files {
			start := before
			before += f.Size
			g.Go(func() error {
				sum, err := hashFile(ctx, f, func(read int64) { near.wait(start + read) })
				if err != nil {
					return fmt.Errorf("hashing %s: %w", f.Name, err)
				}
				mu.Lock()
				defer mu.Unlock()
				sums[f.Path] = sum
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return sums, nil
}

// hashFile hashes a file; it calls wait before each piece, with the bytes it
// has read so far.
func hashFile(ctx context.Context, f plan.File, wait func(read int64)) (string, error) {
	file, _, err := saferead.OpenRegular(f.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, saferead.ErrNotRegular) {
		return "", &InputChangedError{f.Name}
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	h := sha256.New()
	buf := make([]byte, hashPiece)
	var size int64
	for {
		wait(size)
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := file.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
	}
	if size != f.Size {
		return "", &InputChangedError{f.Name}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

const (
	// hashPiece is read and hashed at a time; more is no faster.
	hashPiece = 64 << 10
	// hashAhead is how far hashing may be in front of the bands: far enough not
	// to wait for every one of them, near enough that what it brought into the
	// page cache is still there when they come.
	hashAhead = 256 << 20
)

// pace keeps hashing near the bands. A hash alone is faster than bands that
// compute; with an input larger than the memory it would drive out of the page
// cache what they have yet to read.
type pace struct {
	mu    sync.Mutex
	moved sync.Cond
	read  int64 // by the bands
}

func newPace() *pace {
	p := new(pace)
	p.moved.L = &p.mu
	return p
}

// advance says that the bands have read n more bytes.
func (p *pace) advance(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read += min(n, math.MaxInt64-hashAhead-p.read)
	p.moved.Broadcast()
}

// release lets the hashing run to its end.
func (p *pace) release() { p.advance(math.MaxInt64) }

// wait returns when the bands have come near the byte at, counted over all
// inputs.
func (p *pace) wait(at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at > p.read+hashAhead {
		p.moved.Wait()
	}
}

// InputChangedError says that an input is not what it was when it was opened.
type InputChangedError struct{ Name string }

func (e *InputChangedError) Error() string { return e.Name + " changed while it was read" }
