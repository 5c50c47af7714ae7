package strictjson

import "fmt"

// maxValues bounds a tree: a value takes some 60 bytes where "0," takes two,
// and the longest index of a published model lists under a million tensors.
const maxValues = 4 << 20

// Parse reads one JSON text into a tree. Errors are of type [*SyntaxError].
func Parse(data []byte) (Value, error) { return parse(NewScanner(data)) }

func parse(s *Scanner) (Value, error) {
	p := parser{Scanner: s}
	return p.parse()
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

// Taker takes the parts of a value that is too large for a tree, one by one: the members
// of an object or the items of an array. A kind without a function stays a tree. An error
// ends the parse, as it is.
type Taker struct {
	Member func(key string, v Value) error
	Item   func(i int, v Value) error
}

// ParsePythonObjectExcept is [ParsePythonObject] for a text with large parts, by the keys
// that lead to them, such as "model.vocab": takers get what is in them, and in the tree
// they are empty.
func ParsePythonObjectExcept(data []byte, takers map[string]Taker) (*Object, error) {
	p := parser{Scanner: NewScanner(data), takers: takers}
	p.python = true
	v, err := p.parse()
	if err != nil {
		return nil, err
	}
	return v.Object()
}

type parser struct {
	*Scanner
	values int
	takers map[string]Taker
}

// parse reads the one value of the text.
func (p *parser) parse() (Value, error) {
	t, err := p.Next()
	if err != nil {
		return Value{}, err
	}
	v, err := p.value(t, "")
	if err != nil {
		return Value{}, err
	}
	if _, err := p.Next(); err != nil { // the end
		return Value{}, err
	}
	return v, nil
}

// nowhere is the path of values that no taker is for.
const nowhere = "."

// value builds the value that starts with t. The scanner bounds the depth.
func (p *parser) value(t Token, path string) (Value, error) {
	if p.values++; p.values > maxValues {
		return Value{}, &SyntaxError{Offset: t.Offset, Reason: fmt.Sprintf("more than %d values", maxValues)}
	}
	switch t.Kind {
	case KindArray:
		return p.array(p.takers[path].Item)
	case KindObject:
		return p.object(path, p.takers[path].Member)
	}
	return Value{kind: t.Kind, text: string(t.Text)}, nil
}

func (p *parser) array(take func(i int, v Value) error) (Value, error) {
	items := []Value{}
	for i := 0; ; i++ {
		t, err := p.Next()
		if err != nil {
			return Value{}, err
		}
		if t.Kind == KindArrayEnd {
			return NewArray(items...), nil
		}
		v, err := p.value(t, nowhere)
		if err != nil {
			return Value{}, err
		}
		if take == nil {
			items = append(items, v)
		} else if err := take(i, v); err != nil {
			return Value{}, err
		}
	}
}

// below is the path of a member.
func (p *parser) below(path, key string) string {
	switch {
	case len(p.takers) == 0 || path == nowhere:
		return nowhere
	case path == "":
		return key
	}
	return path + "." + key
}

func (p *parser) object(path string, take func(key string, v Value) error) (Value, error) {
	if take != nil {
		path = nowhere
	}
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
		v, err := p.value(t, p.below(path, key))
		if err != nil {
			return Value{}, err
		}
		if take == nil {
			o.append(key, v) // the scanner has refused duplicates
		} else if err := take(key, v); err != nil {
			return Value{}, err
		}
	}
}
