package linalg

import "sync"

// parallel cuts [0,n) into at most threads ranges whose bounds are multiples of
// unit, calls f for each and waits. The cuts must not change any result.
func parallel(threads, n, unit int, f func(from, to int)) {
	units := (n + unit - 1) / unit
	parts := min(threads, units)
	if parts <= 1 {
		if n > 0 {
			f(0, n)
		}
		return
	}
	var wg sync.WaitGroup
	for p := range parts {
		from, to := p*units/parts*unit, min((p+1)*units/parts*unit, n)
		wg.Go(func() { f(from, to) })
	}
	wg.Wait()
}
