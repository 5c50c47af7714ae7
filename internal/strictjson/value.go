package strictjson

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Value is one JSON value. The zero Value is null. Copies share the items of
// an array and the members of an object.
type Value struct {
	kind   Kind
	text   string // contents of a string, spelling of a number or boolean
	items  []Value
	object *Object
}

// ValueError reports a value that is missing or not what its reader wants.
type ValueError struct {
	Key    string // the member it was asked for by, "" if it was not a member
	Reason string
}

// Error names the key and the reason.
func (e *ValueError) Error() string {
	if e.Key == "" {
		return e.Reason
	}
	return excerpt(e.Key) + ": " + e.Reason
}

// NewNull returns null.
func NewNull() Value { return Value{} }

// NewBool returns a boolean.
func NewBool(b bool) Value { return Value{kind: KindBool, text: strconv.FormatBool(b)} }

// NewInt returns a number.
func NewInt(i int64) Value { return Value{kind: KindNumber, text: strconv.FormatInt(i, 10)} }

// NewFloat returns a number in the shortest spelling that reads back equal,
// written as Python does: 16.0, 0.001, 1e-05. NaN and infinities have none.
func NewFloat(f float64) (Value, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return Value{}, &ValueError{Reason: fmt.Sprintf("%v is not a JSON number", f)}
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return Value{kind: KindNumber, text: strconv.FormatFloat(f, 'e', -1, 64)}, nil
	}
	text := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return Value{kind: KindNumber, text: text}, nil
}

// NewString returns a string. JSON has no way to write invalid UTF-8; each run
// of such bytes becomes U+FFFD.
func NewString(s string) Value {
	return Value{kind: KindString, text: strings.ToValidUTF8(s, "\uFFFD")}
}

// NewStrings returns an array of strings.
func NewStrings(list []string) Value {
	items := make([]Value, len(list))
	for i, s := range list {
		items[i] = NewString(s)
	}
	return NewArray(items...)
}

// NewArray returns an array of the items.
func NewArray(items ...Value) Value { return Value{kind: KindArray, items: items} }

// Kind returns one of KindNull, KindBool, KindNumber, KindString, KindArray
// and KindObject.
func (v Value) Kind() Kind { return v.kind }

// IsNull reports whether the value is null.
func (v Value) IsNull() bool { return v.kind == KindNull }

// Literal returns the number as it is written.
func (v Value) Literal() (string, error) { return only(v, KindNumber, v.text) }

// Text returns the contents of a string.
func (v Value) Text() (string, error) { return only(v, KindString, v.text) }

// Bool returns a boolean. Neither 0 nor "false" is one.
func (v Value) Bool() (bool, error) { return only(v, KindBool, v.text == "true") }

// Int returns an integer. A number with a fraction or an exponent is none,
// even if its value is whole.
func (v Value) Int() (int64, error) {
	if v.kind != KindNumber {
		return 0, v.mismatch("an integer")
	}
	i, err := strconv.ParseInt(v.text, 10, 64)
	if err == nil {
		return i, nil
	}
	if strings.ContainsAny(v.text, ".eE") {
		return 0, v.mismatch("an integer")
	}
	return 0, &ValueError{Reason: clip(v.text) + " is beyond 64 bits"}
}

// Float returns a number as a finite float64.
func (v Value) Float() (float64, error) {
	if v.kind != KindNumber {
		return 0, v.mismatch("a number")
	}
	f, err := strconv.ParseFloat(v.text, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) { // NaN if Python's words were allowed
		return 0, &ValueError{Reason: clip(v.text) + " is not a finite float64"}
	}
	return f, nil
}

// Items returns the items of an array.
func (v Value) Items() ([]Value, error) { return only(v, KindArray, v.items) }

// Strings returns the items of an array of strings.
func (v Value) Strings() ([]string, error) { return list(v, Value.Text) }

// Ints returns the items of an array of integers.
func (v Value) Ints() ([]int64, error) { return list(v, Value.Int) }

// Object returns an object; changing it changes the tree that holds it.
func (v Value) Object() (*Object, error) { return only(v, KindObject, v.object) }

// Equal reports whether both values are written alike but for white space and
// escapes: members in the same order, numbers spelled the same.
func (v Value) Equal(w Value) bool {
	if v.kind != w.kind || len(v.items) != len(w.items) {
		return false
	}
	switch v.kind {
	case KindNull:
		return true
	case KindObject:
		return v.object.equal(w.object)
	}
	for i := range v.items {
		if !v.items[i].Equal(w.items[i]) {
			return false
		}
	}
	return v.text == w.text
}

func list[T any](v Value, item func(Value) (T, error)) ([]T, error) {
	values, err := v.Items()
	if err != nil {
		return nil, err
	}
	out := make([]T, len(values))
	for i, v := range values {
		if out[i], err = item(v); err != nil {
			return nil, &ValueError{Reason: fmt.Sprintf("item %d: %s", i, err)}
		}
	}
	return out, nil
}

// only returns t, which was taken from v, if v is of kind k.
func only[T any](v Value, k Kind, t T) (T, error) {
	if v.kind != k {
		var none T
		return none, v.mismatch(k.String())
	}
	return t, nil
}

// mismatch says what the value is, and what it says if it is short.
func (v Value) mismatch(want string) error {
	have := v.kind.String()
	switch v.kind {
	case KindString:
		have = excerpt(v.text) + " is a string"
	case KindNumber, KindBool:
		have = clip(v.text) + " is " + have
	default:
		have = "is " + have
	}
	return &ValueError{Reason: have + ", not " + want}
}

// clip shortens the spelling of a number for an error message.
func clip(literal string) string {
	const limit = 32
	if len(literal) <= limit {
		return literal
	}
	return literal[:limit] + "..."
}
