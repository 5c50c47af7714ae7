package strictjson

import "fmt"

// maxValues bounds a tree: a value takes some 60 bytes where "0," takes two,
// and the longest index of a published model lists under a million tensors.
const maxValues = 4 << 20

// Parse reads one JSON text into a tree. Errors are of type [*SyntaxError].
func Parse(data []byte) (Value, error) { return parse(NewScanner(data)) }

func parse(s *Scanner) (Value, error) {
	p := parser{Scanner: s}
	t, err := p.Next()
	if err != nil {
		return Value{}, err
	}
	v, err := p.value(t)
	if err != nil {
		return Value{}, err
	}
	if _, err := p.Next(); err != nil { // the end
		return Value{}, err
	}
	return v, nil
}

// ParseObject is [Parse] for a text whose value must be an object, as that of
// every configuration file is.
func ParseObject(data []byte) (*Object, error) {
	v, err := Parse(data)
	if err != nil {
		return nil, err
	}
	return v.Object()
}

// ParsePythonObject is [ParseObject] for a text that Python's json module may
// have written: NaN, Infinity and -Infinity count as numbers. The configs of
// some published models have them ("time_step_limit": [0.0, Infinity]). They
// encode as they were read.
func ParsePythonObject(data []byte) (*Object, error) {
	s := NewScanner(data)
	s.python = true
	v, err := parse(s)
	if err != nil {
		return nil, err
	}
	return v.Object()
}

type parser struct {
	*Scanner
	values int
}

// value builds the value that starts with t. The scanner bounds the depth.
func (p *parser) value(t Token) (Value, error) {
	if p.values++; p.values > maxValues {
		return Value{}, &SyntaxError{Offset: t.Offset, Reason: fmt.Sprintf("more than %d values", maxValues)}
	}
	switch t.Kind {
	case KindArray:
		return p.array()
	case KindObject:
		return p.object()
	}
	return Value{kind: t.Kind, text: string(t.Text)}, nil
}

func (p *parser) array() (Value, error) {
	items := []Value{}
	for {
		t, err := p.Next()
		if err != nil {
			return Value{}, err
		}
		if t.Kind == KindArrayEnd {
			return NewArray(items...), nil
		}
		v, err := p.value(t)
		if err != nil {
			return Value{}, err
		}
		items = append(items, v)
	}
}

func (p *parser) object() (Value, error) {
	o := NewObject()
	for {
		t, err := p.Next()
		if err != nil {
			return Value{}, err
		}
		if t.Kind == KindObjectEnd {
			return o.Value(), nil
		}
		key := string(t.Text)
		if t, err = p.Next(); err != nil {
			return Value{}, err
		}
		v, err := p.value(t)
		if err != nil {
			return Value{}, err
		}
		o.append(key, v) // the scanner has refused duplicates
	}
}
