// Package tokenizer reads what model folders say about tokens: SentencePiece models
// (tokenizer.model) and those of the tokenizers library (tokenizer.json), and names
// their pre-tokenizers as llama.cpp does. An [Encoder] turns text into tokens as a
// tokenizer.json says, a [Llama] as llama.cpp does with a GGUF file.
//
// The main types are [Piece], [Fast], [Encoder] and [Llama]. Files are not trusted: lengths are
// compared with what is there, types with what they may be.
package tokenizer

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"
)

// PieceType says what a piece is for, by the numbers of SentencePiece.
type PieceType int

const (
	Normal PieceType = iota + 1
	Unknown
	Control
	UserDefined
	Unused
	Byte
)

// Piece is one token of a SentencePiece model.
type Piece struct {
	Text  string
	Score float32
	Type  PieceType
}

// FormatError says what is wrong with a file, and where.
type FormatError struct {
	Offset int // in bytes; -1 where it is no place
	Reason string
}

func (e *FormatError) Error() string {
	if e.Offset < 0 {
		return e.Reason
	}
	return fmt.Sprintf("at byte %d: %s", e.Offset, e.Reason)
}

// maxPieces is far above any vocabulary; what claims more is an attack on memory.
const maxPieces = 1 << 24

// The fields that are read, of sentencepiece_model.proto.
const (
	fieldPieces = 1 // of ModelProto
	fieldText   = 1 // of SentencePiece
	fieldScore  = 2
	fieldType   = 3
)

// ParseSentencePiece reads the pieces of a SentencePiece model in the order of their
// ids. Everything else in the file is passed over.
func ParseSentencePiece(data []byte) ([]Piece, error) {
	var pieces []Piece
	p := proto{data: data, end: len(data)}
	for p.more() {
		field, wire, err := p.tag()
		if err != nil {
			return nil, err
		}
		if field != fieldPieces || wire != wireBytes {
			if err := p.skip(wire); err != nil {
				return nil, err
			}
			continue
		}
		inner, err := p.message()
		if err != nil {
			return nil, err
		}
		if len(pieces) == maxPieces {
			return nil, p.errorf("more than %d pieces", maxPieces)
		}
		piece, err := parsePiece(inner)
		if err != nil {
			return nil, err
		}
		pieces = append(pieces, piece)
	}
	if len(pieces) == 0 {
		return nil, &FormatError{-1, "no pieces: not a SentencePiece model"}
	}
	return pieces, nil
}

func parsePiece(p proto) (Piece, error) {
	piece := Piece{Type: Normal}
	for p.more() {
		field, wire, err := p.tag()
		if err != nil {
			return piece, err
		}
		switch {
		case field == fieldText && wire == wireBytes:
			inner, err := p.message()
			if err != nil {
				return piece, err
			}
			piece.Text = string(inner.data[inner.at:inner.end])
			if !utf8.ValidString(piece.Text) {
				return piece, p.errorf("a piece that is not UTF-8")
			}
		case field == fieldScore && wire == wire32:
			bits, err := p.take(4)
			if err != nil {
				return piece, err
			}
			piece.Score = math.Float32frombits(binary.LittleEndian.Uint32(bits))
		case field == fieldType && wire == wireVarint:
			n, err := p.varint()
			if err != nil {
				return piece, err
			}
			if n < uint64(Normal) || n > uint64(Byte) {
				return piece, p.errorf("piece %q is of type %d, which is none", piece.Text, n)
			}
			piece.Type = PieceType(n)
		default:
			if err := p.skip(wire); err != nil {
				return piece, err
			}
		}
	}
	return piece, nil
}

// The wire types of protocol buffers.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

// proto reads a message of protocol buffers that lies in data[at:end].
type proto struct {
	data    []byte
	at, end int
}

func (p *proto) more() bool { return p.at < p.end }

func (p *proto) errorf(format string, args ...any) error {
	return &FormatError{p.at, fmt.Sprintf(format, args...)}
}

// maxVarint is the most bytes that a 64-bit number takes.
const maxVarint = 10

func (p *proto) varint() (uint64, error) {
	n, size := binary.Uvarint(p.data[p.at:min(p.end, p.at+maxVarint)])
	if size <= 0 {
		return 0, p.errorf("a number that does not end")
	}
	p.at += size
	return n, nil
}

func (p *proto) tag() (field uint64, wire int, err error) {
	n, err := p.varint()
	if err != nil {
		return 0, 0, err
	}
	if n>>3 == 0 {
		return 0, 0, p.errorf("field 0")
	}
	return n >> 3, int(n & 7), nil
}

func (p *proto) take(n uint64) ([]byte, error) {
	if n > uint64(p.end-p.at) {
		return nil, p.errorf("%d bytes are missing", n-uint64(p.end-p.at))
	}
	b := p.data[p.at : p.at+int(n)]
	p.at += int(n)
	return b, nil
}

// message returns the message that comes next.
func (p *proto) message() (proto, error) {
	n, err := p.varint()
	if err != nil {
		return proto{}, err
	}
	from := p.at
	if _, err := p.take(n); err != nil {
		return proto{}, err
	}
	return proto{p.data, from, p.at}, nil
}

func (p *proto) skip(wire int) error {
	switch wire {
	case wireVarint:
		_, err := p.varint()
		return err
	case wire64:
		_, err := p.take(8)
		return err
	case wireBytes:
		_, err := p.message()
		return err
	case wire32:
		_, err := p.take(4)
		return err
	}
	return p.errorf("wire type %d", wire)
}
