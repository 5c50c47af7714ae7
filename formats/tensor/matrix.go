package tensor

// Float is the arithmetic of a step: float32, or float64 when a tensor of the
// step is stored as F64.
type Float interface{ float32 | float64 }

// Matrix is a decoded tensor, row-major. Rows and Cols are those of its
// [Spec]: a tensor of rank 3 or more is seen as its first dimension times the
// rest.
type Matrix[T Float] struct {
	Shape Shape
	Data  []T
}

// Rows returns the first dimension, or 1 for a scalar.
func (m Matrix[T]) Rows() int {
	if len(m.Shape) == 0 {
		return 1
	}
	return int(m.Shape[0])
}

// Cols returns the product of all dimensions but the first.
func (m Matrix[T]) Cols() int {
	if len(m.Shape) == 0 {
		return 1
	}
	n, _ := m.Shape[1:].NumElements()
	return int(n)
}

// Transpose returns the Cols x Rows matrix with the axes swapped, in new
// memory.
func (m Matrix[T]) Transpose() Matrix[T] {
	rows, cols := m.Rows(), m.Cols()
	t := Matrix[T]{Shape: Shape{int64(cols), int64(rows)}, Data: make([]T, len(m.Data))}
	for i := range rows {
		for j, v := range m.Data[i*cols : (i+1)*cols] {
			t.Data[j*rows+i] = v
		}
	}
	return t
}
