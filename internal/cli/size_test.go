package cli

import "testing"

// TestSize guards the sizes that scripts write: decimal and binary units.
func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "4096": 4096, "1B": 1, "5GB": 5_000_000_000, "1KB": 1000, "1KiB": 1024, "128MiB": 128 << 20,
		"1.5GiB": 3 << 29, "2TB": 2e12, "1TiB": 1 << 40, "8 GiB": 8 << 30, "1MB": 1e6,
	} {
		var s size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q is %d, want %d (%v)", text, s, want, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "GB", "5G", "5gb", "1KiBB", "nan", "inf", "1e40", "0.4B", "1,5GB", "5GB "} {
		s := size(7)
		if err := s.Set(text); err == nil || s != 7 {
			t.Errorf("%q is %d", text, s)
		}
	}
}

// TestEnough guards the hint about memory: who follows it must not be refused
// again.
func TestEnough(t *testing.T) {
	for _, n := range []int64{1, 1023, 1024, 1025, 18432, 64<<20 - 1, 64 << 20, 64<<20 + 1, 1<<30 + 1, 1<<50 + 1} {
		var s size
		if err := s.Set(enough(n)); err != nil || int64(s) < n || float64(s) > 1.1*float64(n)+1024 {
			t.Errorf("%d bytes: %s is %d (%v)", n, enough(n), s, err)
		}
	}
}

func TestEdits(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"merge", "mrege", 2}, {"base", "bse", 1}, {"kitten", "sitting", 3}} {
		if got := edits(c.a, c.b); got != c.want {
			t.Errorf("edits(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
