package gguf

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/loratool/loratool/internal/saferead"
)

// windowSize is how much of the header is in memory to be looked at.
const windowSize = 64 << 10

// cursor walks through the header of a file.
type cursor struct {
	r      *saferead.Reader
	pos    int64 // of the next byte
	buffer []byte
	window []byte // the bytes from pos on that were read already
}

func newCursor(r *saferead.Reader) *cursor {
	return &cursor{r: r, buffer: make([]byte, min(r.Size(), windowSize))}
}

// left returns how many bytes of the file are still to come.
func (c *cursor) left() int64 { return c.r.Size() - c.pos }

// peek returns the next n bytes, at most windowSize, without moving on. They
// are valid until the next call.
func (c *cursor) peek(n int) ([]byte, error) {
	if n <= len(c.window) {
		return c.window[:n], nil
	}
	window := c.buffer[:min(c.left(), int64(len(c.buffer)))]
	if n > len(window) {
		return nil, &FormatError{Offset: c.pos, Reason: "file ends inside the header"}
	}
	if err := c.r.ReadFull(window, c.pos); err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	c.window = window
	return window[:n], nil
}

// skip moves on by n bytes that were peeked at.
func (c *cursor) skip(n int) {
	c.window = c.window[n:]
	c.pos += int64(n)
}

// checkLimit refuses a header that goes on for another n bytes and so gets too
// long.
func (c *cursor) checkLimit(n int64) error {
	if n > maxHeaderSize-c.pos {
		return &FormatError{Offset: c.pos, Reason: fmt.Sprintf("header is above the limit of %d bytes", maxHeaderSize)}
	}
	return nil
}

func (c *cursor) uint32() (uint32, error) {
	b, err := c.peek(4)
	if err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint32(b)
	c.skip(4)
	return n, nil
}

func (c *cursor) uint64() (uint64, error) {
	b, err := c.peek(8)
	if err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(b)
	c.skip(8)
	return n, nil
}

// length reads the length of a string and proves that the file can have it.
func (c *cursor) length(what string) (int64, error) {
	at := c.pos
	n, err := c.uint64()
	switch {
	case err != nil:
		return 0, err
	case n > maxLength:
		return 0, &FormatError{Offset: at, Reason: fmt.Sprintf("%s of %d bytes is above the limit of %d", what, n, maxLength)}
	case int64(n) > c.left():
		return 0, &FormatError{Offset: at, Reason: fmt.Sprintf("%s of %d bytes runs past the end of the file, which has %d",
			what, n, c.r.Size())}
	}
	return int64(n), c.checkLimit(int64(n))
}

// text reads the length of a string, then the string.
func (c *cursor) text(what string) (string, error) {
	n, err := c.length(what)
	if err != nil {
		return "", err
	}
	if n <= windowSize {
		b, err := c.peek(int(n))
		if err != nil {
			return "", err
		}
		text := string(b)
		c.skip(len(b))
		return text, nil
	}
	var g gatherer
	if err := c.gather(&g, n, nil); err != nil {
		return "", err
	}
	return g.join(), nil
}

// gather adds the next n bytes, which the file has. Each piece is shown to look
// first, with its place in the file.
func (c *cursor) gather(g *gatherer, n int64, look func(piece []byte, at int64) error) error {
	for n > 0 {
		piece, err := c.peek(int(min(n, windowSize)))
		if err != nil {
			return err
		}
		if look != nil {
			if err := look(piece, c.pos); err != nil {
				return err
			}
		}
		g.write(piece)
		c.skip(len(piece))
		n -= int64(len(piece))
	}
	return nil
}

// gatherer collects text of unknown length in pieces, so that memory grows with
// what was read, and joins them at the end, so that none is left over.
type gatherer struct {
	full [][]byte
	last []byte
	size int
}

// maxPiece is the size of a gatherer's larger pieces.
const maxPiece = 1 << 20

func (g *gatherer) write(p []byte) {
	if len(p) > cap(g.last)-len(g.last) {
		g.full = append(g.full, g.last)
		g.last = make([]byte, 0, max(len(p), min(g.size, maxPiece)))
	}
	g.last = append(g.last, p...)
	g.size += len(p)
}

// join returns all that was written and lets go of it.
func (g *gatherer) join() string {
	var b strings.Builder
	b.Grow(g.size)
	for i, p := range g.full {
		b.Write(p)
		g.full[i] = nil
	}
	b.Write(g.last)
	*g = gatherer{}
	return b.String()
}
