package safetensors

import (
	"bytes"

	"github.com/loratool/loratool/internal/strictjson"
)

// metadata is the text of the __metadata__ object, nil if there is none. It
// stays text until it is asked for: as a map, a hostile header of millions of
// short keys would take ten times its size.
type metadata []byte

// readMetadata reads the object after the key and proves that it maps strings
// to strings.
func (p *headerParser) readMetadata() error {
	open, err := p.want(strictjson.KindObject, metadataKey)
	if err != nil {
		return err
	}
	for {
		t, err := p.next()
		if err != nil {
			return err
		}
		if t.Kind == strictjson.KindObjectEnd {
			p.metadata = bytes.Clone(p.header[open.Offset : t.Offset+1])
			return nil
		}
		key := t.Offset
		if t, err = p.next(); err != nil {
			return err
		}
		if t.Kind != strictjson.KindString {
			return p.errorAt(key, metadataKey+" holds "+t.Kind.String()+", not only strings")
		}
	}
}

// Map returns the pairs. The text was proved valid when the file was opened,
// so that scanning it can't fail.
func (m metadata) Map() map[string]string {
	if m == nil {
		return nil
	}
	pairs := map[string]string{}
	s := strictjson.NewScanner(m)
	var key string
	for {
		t, err := s.Next()
		switch {
		case err != nil || t.Kind == strictjson.KindEnd:
			return pairs
		case t.Kind == strictjson.KindKey:
			key = string(t.Text)
		case t.Kind == strictjson.KindString:
			pairs[key] = string(t.Text)
		}
	}
}
