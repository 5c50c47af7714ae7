package block

// Types of three values, 256 elements each.
//
//	TQ1_0  x = d (t - 1)   48 bytes of five, 4 bytes of four, d
//	TQ2_0  x = d (t - 1)   64 bytes of four, d
//
// A byte of TQ1_0 is a fraction: t0 t1 t2 t3 t4 in base 3 over 243, in steps of
// 1/256, rounded up. Multiplying by 3^n and keeping the low eight bits leaves the
// fraction that begins with digit n; three times that is the digit and a rest.
// Digit n of bytes 0..31 is element 32n + byte, then 16 bytes and 4 bytes follow in
// the same way, the last with four digits. Of TQ2_0, bits 2n and 2n+1 of 32 bytes
// are 32 elements.

// ternaryRun is a stretch of bytes that hold one digit each of as many elements.
type ternaryRun struct{ at, count, digits int }

var ternaryRuns = [...]ternaryRun{{0, 32, 5}, {32, 16, 5}, {48, 4, 4}}

func decodeTQ1(dst []float32, src []byte) {
	for ; len(src) > 0; src = src[54:] {
		d := half(src[52:])
		for _, run := range ternaryRuns {
			power := byte(1)
			for range run.digits {
				for j, b := range src[run.at:][:run.count] {
					dst[j] = d * float32(int32(uint32(b*power)*3>>8)-1)
				}
				dst = dst[run.count:]
				power *= 3
			}
		}
	}
}

func decodeTQ2(dst []float32, src []byte) {
	for ; len(src) > 0; src = src[66:] {
		d := half(src[64:])
		for at := 0; at < 64; at += 32 {
			for shift := 0; shift < 8; shift += 2 {
				for j, b := range src[at:][:32] {
					dst[j] = d * float32(int32(b>>shift&3)-1)
				}
				dst = dst[32:]
			}
		}
	}
}

func encodeTQ1(dst []byte, row, _ []float32) {
	for ; len(row) > 0; dst = dst[54:] {
		id := putTernaryScale(dst[52:], row[:superBlock])
		for _, run := range ternaryRuns {
			for j := range run.count {
				var number uint32
				for digit := range 5 {
					number *= 3
					if digit < run.digits {
						number += trit(row[digit*run.count+j], id)
					}
				}
				dst[run.at+j] = byte((number*256 + 242) / 243)
			}
			row = row[run.count*run.digits:]
		}
	}
}

func encodeTQ2(dst []byte, row, _ []float32) {
	for ; len(row) > 0; dst = dst[66:] {
		id := putTernaryScale(dst[64:], row[:superBlock])
		for at := 0; at < 64; at += 32 {
			for j := range 32 {
				dst[at+j] = byte(trit(row[j], id) | trit(row[j+32], id)<<2 | trit(row[j+64], id)<<4 | trit(row[j+96], id)<<6)
			}
			row = row[128:]
		}
	}
}

// putTernaryScale stores the largest magnitude and returns its inverse.
func putTernaryScale(dst []byte, x []float32) (id float32) {
	d, _ := peak(x)
	putHalf(dst, d)
	if id = inverse(d); !finite32(id) {
		return 0 // d rounds to zero as binary16, codes don't matter: 1, as on x86-64
	}
	return id
}

func trit(x, id float32) uint32 { return uint32(roundAway(float32(x*id)) + 1) }
