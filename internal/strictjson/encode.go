package strictjson

// Encode writes the value as Python's json.dump does with ensure_ascii=False:
// one member or item a line, indented by indent for each level, or all on one
// line if indent is empty. Empty containers are {} and []. No line break
// follows the value.
func (v Value) Encode(indent string) []byte {
	e := encoder{indent: indent}
	e.value(v)
	return e.out
}

// Encode writes the object like [Value.Encode].
func (o *Object) Encode(indent string) []byte { return o.Value().Encode(indent) }

type encoder struct {
	out    []byte
	indent string
	depth  int
}

func (e *encoder) value(v Value) {
	switch v.kind {
	case KindString:
		e.out = AppendQuoted(e.out, v.text)
	case KindArray:
		e.array(v.items)
	case KindObject:
		e.object(v.object)
	case KindNull:
		e.out = append(e.out, "null"...)
	default:
		e.out = append(e.out, v.text...)
	}
}

func (e *encoder) array(items []Value) {
	if len(items) == 0 {
		e.out = append(e.out, "[]"...)
		return
	}
	e.open('[')
	for i, v := range items {
		e.separate(i)
		e.value(v)
	}
	e.close(']')
}

func (e *encoder) object(o *Object) {
	if o.Len() == 0 {
		e.out = append(e.out, "{}"...)
		return
	}
	e.open('{')
	for i, m := range o.members {
		e.separate(i)
		e.out = AppendQuoted(e.out, m.key)
		e.out = append(e.out, ": "...)
		e.value(m.value)
	}
	e.close('}')
}

func (e *encoder) open(c byte) {
	e.out = append(e.out, c)
	e.depth++
	e.newline()
}

func (e *encoder) close(c byte) {
	e.depth--
	e.newline()
	e.out = append(e.out, c)
}

// separate writes what stands before the i-th member or item.
func (e *encoder) separate(i int) {
	if i == 0 {
		return
	}
	e.out = append(e.out, ',')
	if e.indent == "" {
		e.out = append(e.out, ' ')
	}
	e.newline()
}

func (e *encoder) newline() {
	if e.indent == "" {
		return
	}
	e.out = append(e.out, '\n')
	for range e.depth {
		e.out = append(e.out, e.indent...)
	}
}

// AppendQuoted appends s, which must be valid UTF-8, as a JSON string. Only
// the quote, the backslash and control characters below U+0020 are escaped,
// with the short forms where there are such; Python and serde write the same.
func AppendQuoted(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, `\b`...)
		case '\f':
			dst = append(dst, `\f`...)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, `\u00`...)
			dst = append(dst, hex[c>>4], hex[c&0xF])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
