package block

import "fmt"

// GGMLTypeError says that a type can't be decoded or written here, and why.
type GGMLTypeError struct {
	Type   GGML
	Verb   string // "decoded", "written" or "written without weights"
	Reason string
}

func (e *GGMLTypeError) Error() string {
	return fmt.Sprintf("%s can't be %s: %s", e.Type, e.Verb, e.Reason)
}

// GGMLValueError names a number that stands in the way of quantization. Row counts
// from the first row that was given; for a weight it is 0.
type GGMLValueError struct {
	Type   GGML
	Row    int
	Column int
	Value  float32
	Reason string
}

func (e *GGMLValueError) Error() string {
	return fmt.Sprintf("quantizing to %s: row %d, column %d: %g %s", e.Type, e.Row, e.Column, e.Value, e.Reason)
}
