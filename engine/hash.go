package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/plan"
)

// hashInputs returns the SHA-256 of every file of every input. It runs beside
// the bands, in the same file order, so that it reads what they are about to
// read and the bytes come from the page cache once.
func hashInputs(ctx context.Context, p *plan.Plan) (map[string]string, error) {
	sums := make(map[string]string)
	buf := make([]byte, 1<<20)
	for _, in := range p.Inputs {
		for _, f := range in.Files {
			sum, err := hashFile(ctx, f, buf)
			if err != nil {
				return nil, fmt.Errorf("hashing %s: %w", f.Name, err)
			}
			sums[f.Path] = sum
		}
	}
	return sums, nil
}

func hashFile(ctx context.Context, f plan.File, buf []byte) (string, error) {
	file, _, err := saferead.OpenRegular(f.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, saferead.ErrNotRegular) {
		return "", &InputChangedError{f.Name}
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	h := sha256.New()
	var size int64
	for {
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

// InputChangedError says that an input is not what it was when it was opened.
type InputChangedError struct{ Name string }

func (e *InputChangedError) Error() string { return e.Name + " changed while it was read" }
