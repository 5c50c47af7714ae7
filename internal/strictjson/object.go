package strictjson

import (
	"iter"
	"slices"
	"strings"
)

// smallObject is the number of members that are searched one by one.
const smallObject = 16

// Object is a JSON object whose members keep their order. It is safe for
// concurrent reads, not for concurrent changes. It must not be put into
// itself.
type Object struct {
	members []member
	index   map[string]int // nil while small
}

type member struct {
	key   string
	value Value
}

// NewObject returns an object without members.
func NewObject() *Object { return &Object{} }

// Value returns the object as a value; the two share their members.
func (o *Object) Value() Value { return Value{kind: KindObject, object: o} }

// Len returns the number of members.
func (o *Object) Len() int { return len(o.members) }

// All yields the members in their order.
func (o *Object) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		for _, m := range o.members {
			if !yield(m.key, m.value) {
				return
			}
		}
	}
}

// Keys returns the keys in their order.
func (o *Object) Keys() []string {
	keys := make([]string, len(o.members))
	for i, m := range o.members {
		keys[i] = m.key
	}
	return keys
}

// Get returns a member's value. Keys match exactly.
func (o *Object) Get(key string) (Value, bool) {
	if i := o.find(key); i >= 0 {
		return o.members[i].value, true
	}
	return Value{}, false
}

// Set replaces a member's value in place, or adds the member at the end. As in
// [NewString], invalid UTF-8 in the key becomes U+FFFD.
func (o *Object) Set(key string, v Value) {
	key = strings.ToValidUTF8(key, "\uFFFD")
	if i := o.find(key); i >= 0 {
		o.members[i].value = v
		return
	}
	o.append(key, v)
}

// Delete removes a member and reports whether there was one.
func (o *Object) Delete(key string) bool {
	i := o.find(key)
	if i < 0 {
		return false
	}
	o.members = slices.Delete(o.members, i, i+1)
	o.reindex()
	return true
}

// String returns a member that must be a string.
func (o *Object) String(key string) (string, error) { return required(o, key, Value.Text) }

// Int returns a member that must be an integer.
func (o *Object) Int(key string) (int64, error) { return required(o, key, Value.Int) }

// Float returns a member that must be a number.
func (o *Object) Float(key string) (float64, error) { return required(o, key, Value.Float) }

// Bool returns a member that must be a boolean.
func (o *Object) Bool(key string) (bool, error) { return required(o, key, Value.Bool) }

// Items returns a member that must be an array.
func (o *Object) Items(key string) ([]Value, error) { return required(o, key, Value.Items) }

// Strings returns a member that must be an array of strings.
func (o *Object) Strings(key string) ([]string, error) { return required(o, key, Value.Strings) }

// Ints returns a member that must be an array of integers.
func (o *Object) Ints(key string) ([]int64, error) { return required(o, key, Value.Ints) }

// Object returns a member that must be an object.
func (o *Object) Object(key string) (*Object, error) { return required(o, key, Value.Object) }

// OptString returns a member that is a string, or false if it is absent or
// null, which Python writes for None.
func (o *Object) OptString(key string) (string, bool, error) { return optional(o, key, Value.Text) }

// OptInt is like [Object.OptString] for an integer.
func (o *Object) OptInt(key string) (int64, bool, error) { return optional(o, key, Value.Int) }

// OptFloat is like [Object.OptString] for a number.
func (o *Object) OptFloat(key string) (float64, bool, error) { return optional(o, key, Value.Float) }

// OptBool is like [Object.OptString] for a boolean.
func (o *Object) OptBool(key string) (bool, bool, error) { return optional(o, key, Value.Bool) }

// OptItems is like [Object.OptString] for an array.
func (o *Object) OptItems(key string) ([]Value, bool, error) { return optional(o, key, Value.Items) }

// OptStrings is like [Object.OptString] for an array of strings.
func (o *Object) OptStrings(key string) ([]string, bool, error) {
	return optional(o, key, Value.Strings)
}

// OptInts is like [Object.OptString] for an array of integers.
func (o *Object) OptInts(key string) ([]int64, bool, error) { return optional(o, key, Value.Ints) }

// OptObject is like [Object.OptString] for an object.
func (o *Object) OptObject(key string) (*Object, bool, error) { return optional(o, key, Value.Object) }

func required[T any](o *Object, key string, read func(Value) (T, error)) (T, error) {
	v, ok := o.Get(key)
	if !ok {
		var none T
		return none, &ValueError{Key: key, Reason: "missing"}
	}
	return named(key, v, read)
}

func optional[T any](o *Object, key string, read func(Value) (T, error)) (T, bool, error) {
	v, ok := o.Get(key)
	if !ok || v.IsNull() {
		var none T
		return none, false, nil
	}
	t, err := named(key, v, read)
	return t, err == nil, err
}

// named reads a value and puts the key into the error.
func named[T any](key string, v Value, read func(Value) (T, error)) (T, error) {
	t, err := read(v)
	if err != nil {
		var none T
		return none, &ValueError{Key: key, Reason: err.Error()}
	}
	return t, nil
}

func (o *Object) equal(p *Object) bool {
	return slices.EqualFunc(o.members, p.members, func(a, b member) bool {
		return a.key == b.key && a.value.Equal(b.value)
	})
}

// append adds a member whose key is new.
func (o *Object) append(key string, v Value) {
	o.members = append(o.members, member{key, v})
	if o.index != nil {
		o.index[key] = len(o.members) - 1
		return
	}
	o.reindex()
}

// reindex builds the index anew if the object is large enough to need one.
func (o *Object) reindex() {
	o.index = nil
	if len(o.members) <= smallObject {
		return
	}
	o.index = make(map[string]int, len(o.members))
	for i, m := range o.members {
		o.index[m.key] = i
	}
}

func (o *Object) find(key string) int {
	if o.index != nil {
		if i, ok := o.index[key]; ok {
			return i
		}
		return -1
	}
	return slices.IndexFunc(o.members, func(m member) bool { return m.key == key })
}
