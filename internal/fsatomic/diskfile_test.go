package fsatomic

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestDiskFile writes a file in pieces of every kind from several goroutines -
// shorter than a page, across pages, longer than a write - and compares all of
// it, for every way to write.
func TestDiskFile(t *testing.T) {
	for _, way := range []string{"cached", "past the cache", "refused on the way"} {
		for _, seed := range []uint64{1, 2, 3} {
			t.Run(fmt.Sprint(way, seed), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "f")
				created, err := OS{Direct: way != "cached"}.Create(path)
				if err != nil {
					t.Fatal(err)
				}
				f := created.(*diskFile)
				if way != "cached" && f.past == nil {
					t.Skip("this file system can't")
				}
				want := content(5<<20+123, seed)
				if err := f.Truncate(int64(len(want))); err != nil {
					t.Fatal(err)
				}
				pieces := cutRandomly(len(want), seed)
				var wg sync.WaitGroup
				for w := range 3 {
					wg.Go(func() {
						for i := w; i < len(pieces)-1; i += 3 {
							if way == "refused on the way" && i > len(pieces)/2 {
								f.cached.Store(true)
							}
							from, to := pieces[i], pieces[i+1]
							if n, err := f.WriteAt(want[from:to], int64(from)); n != to-from || err != nil {
								t.Errorf("[%d, %d): %d, %v", from, to, n, err)
							}
						}
					})
				}
				wg.Wait()
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
				checkFile(t, path, want)
				// What is written again after a Sync counts.
				copy(want[100:], "again")
				if _, err := f.WriteAt(want[:4096*3+5], 0); err != nil {
					t.Fatal(err)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				checkFile(t, path, want)
			})
		}
	}
}

// TestEndsAreBounded guards the memory that pieces without a page take.
func TestEndsAreBounded(t *testing.T) {
	created, err := OS{Direct: true}.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer created.Close()
	f := created.(*diskFile)
	if f.past == nil {
		t.Skip("this file system can't write past the cache")
	}
	for i := range 10 * maxEnds {
		if _, err := f.WriteAt([]byte{1, 2, 3}, int64(i)*5000+1); err != nil {
			t.Fatal(err)
		}
		if len(f.ends) > maxEnds {
			t.Fatalf("%d pieces wait", len(f.ends))
		}
	}
}

// TestReserved guards that a file written past the cache has its room at once.
func TestReserved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := OS{Direct: true}.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.(*diskFile).past == nil {
		t.Skip("this file system can't write past the cache")
	}
	if err := f.Truncate(1 << 62); err == nil {
		t.Error("reserved more than any disk has")
	}
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 1<<20 {
		t.Errorf("%v, %v", info, err)
	}
}

// content makes bytes in which every piece is found out if it lies elsewhere.
func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

// cutRandomly cuts [0, n) into pieces from one byte to three megabytes.
func cutRandomly(n int, seed uint64) []int {
	r := rand.New(rand.NewPCG(seed, 0))
	at := []int{0}
	for last := 0; last < n; {
		step := []int{1 + r.IntN(10), 1 + r.IntN(3*page), page, 1 + r.IntN(3<<20)}[r.IntN(4)]
		last = min(last+step, n)
		at = append(at, last)
	}
	return at
}

func checkFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		for i := range want {
			if i >= len(got) || got[i] != want[i] {
				t.Fatalf("%d bytes, the first difference at %d of %d", len(got), i, len(want))
			}
		}
		t.Fatalf("%d bytes too many", len(got)-len(want))
	}
}
