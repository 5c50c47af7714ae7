package gguf

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// Metadata is the list of a file's keys with their values, in order. It is
// safe for concurrent reads, not for concurrent changes. The zero value is an
// empty list.
type Metadata struct {
	pairs []pair
	index map[string]int32
}

type pair struct {
	key   string
	value Value
}

// Pair is a key with its value.
type Pair struct {
	Key   string
	Value Value
}

// Len returns the number of keys.
func (m *Metadata) Len() int { return len(m.pairs) }

// All yields the keys and values in their order.
func (m *Metadata) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		for _, p := range m.pairs {
			if !yield(p.key, p.value) {
				return
			}
		}
	}
}

// Get returns the value of a key.
func (m *Metadata) Get(key string) (Value, bool) {
	i, ok := m.index[key]
	if !ok {
		return Value{}, false
	}
	return m.pairs[i].value, true
}

// Has reports whether there is such a key.
func (m *Metadata) Has(key string) bool {
	_, ok := m.index[key]
	return ok
}

// Set puts the key at the end of the list, also if it is there already: that is
// where the reference's tools leave the keys they change.
func (m *Metadata) Set(key string, v Value) {
	m.Delete(key)
	m.add(key, v)
}

// Replace changes the value of a key in its place, and reports whether there is
// such a key.
func (m *Metadata) Replace(key string, v Value) bool {
	i, ok := m.index[key]
	if ok {
		m.pairs[i].value = v
	}
	return ok
}

// Delete removes a key and reports whether it was there.
func (m *Metadata) Delete(key string) bool {
	i, ok := m.index[key]
	if !ok {
		return false
	}
	m.pairs = slices.Delete(m.pairs, int(i), int(i)+1)
	delete(m.index, key)
	for j := int(i); j < len(m.pairs); j++ {
		m.index[m.pairs[j].key] = int32(j)
	}
	return true
}

// Clone returns a copy that can be changed on its own; values are shared.
func (m *Metadata) Clone() *Metadata {
	c := &Metadata{pairs: slices.Clone(m.pairs), index: make(map[string]int32, len(m.pairs))}
	for i, p := range c.pairs {
		c.index[p.key] = int32(i)
	}
	return c
}

// Text returns a key that must be a string. Like the other readers of one key,
// it gives a [*KeyError] if the key is missing or of another type.
func (m *Metadata) Text(key string) (string, error) { return required(m, key, Value.Text) }

// Int returns a key that must be an integer, of any type.
func (m *Metadata) Int(key string) (int64, error) { return required(m, key, Value.Int) }

// Float returns a key that must be a floating-point number.
func (m *Metadata) Float(key string) (float64, error) { return required(m, key, Value.Float) }

// Bool returns a key that must be a boolean.
func (m *Metadata) Bool(key string) (bool, error) { return required(m, key, Value.Bool) }

// Strings returns a key that must be an array of strings.
func (m *Metadata) Strings(key string) ([]string, error) { return required(m, key, Value.Strings) }

// OptText returns a key that is a string, or false if it is absent.
func (m *Metadata) OptText(key string) (string, bool, error) { return optional(m, key, Value.Text) }

// OptInt is like [Metadata.OptText] for an integer of any type.
func (m *Metadata) OptInt(key string) (int64, bool, error) { return optional(m, key, Value.Int) }

// OptFloat is like [Metadata.OptText] for a floating-point number.
func (m *Metadata) OptFloat(key string) (float64, bool, error) { return optional(m, key, Value.Float) }

// OptBool is like [Metadata.OptText] for a boolean.
func (m *Metadata) OptBool(key string) (bool, bool, error) { return optional(m, key, Value.Bool) }

// OptStrings is like [Metadata.OptText] for an array of strings.
func (m *Metadata) OptStrings(key string) ([]string, bool, error) {
	return optional(m, key, Value.Strings)
}

// KeyError reports a key that is missing or does not have the expected value.
type KeyError struct {
	Key    string
	Reason string
}

// Error names the key and the reason.
func (e *KeyError) Error() string { return fmt.Sprintf("key %s: %s", excerpt(e.Key), e.Reason) }

func required[T any](m *Metadata, key string, read func(Value) (T, error)) (T, error) {
	t, ok, err := optional(m, key, read)
	if err == nil && !ok {
		err = &KeyError{Key: key, Reason: "missing"}
	}
	return t, err
}

func optional[T any](m *Metadata, key string, read func(Value) (T, error)) (t T, ok bool, err error) {
	v, ok := m.Get(key)
	if !ok {
		return t, false, nil
	}
	if t, err = read(v); err != nil {
		return t, false, &KeyError{Key: key, Reason: err.Error()}
	}
	return t, true, nil
}

// alignment returns the alignment that the keys ask for.
func (m *Metadata) alignment() (int64, error) {
	v, ok := m.Get(KeyAlignment)
	if !ok {
		return DefaultAlignment, nil
	}
	if v.typ != Uint32 {
		return 0, fmt.Errorf("is %s, must be u32", v.Describe())
	}
	n := int64(v.bits())
	if n == 0 || n&(n-1) != 0 {
		return 0, fmt.Errorf("alignment %d is not a power of two", n)
	}
	return n, nil
}

// add appends a key that is not there yet.
func (m *Metadata) add(key string, v Value) {
	if m.index == nil {
		m.index = make(map[string]int32)
	}
	m.index[key] = int32(len(m.pairs))
	m.pairs = append(m.pairs, pair{key, v})
}

// append appends all pairs as files have them.
func (m *Metadata) append(b []byte) []byte {
	for _, p := range m.pairs {
		b = appendString(b, p.key)
		b = p.value.append(b)
	}
	return b
}

// checkKey refuses what a file can't have as a key.
func checkKey(key string) error {
	switch {
	case key == "":
		return errors.New("key is empty")
	case len(key) > maxKeySize:
		return fmt.Errorf("key has %d bytes, at most %d are allowed", len(key), maxKeySize)
	}
	return checkText("key", key)
}

// checkName refuses what a file can't have as the name of a tensor.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("tensor name is empty")
	case len(name) > MaxNameSize:
		return fmt.Errorf("tensor name has %d bytes, at most %d are allowed", len(name), MaxNameSize)
	}
	return checkText("tensor name", name)
}

// checkText refuses a name that readers could see in two ways.
func checkText(what, name string) error {
	switch {
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%s holds a NUL byte", what)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s is not valid UTF-8", what)
	}
	return nil
}
