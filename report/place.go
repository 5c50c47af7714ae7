package report

import (
	"slices"
	"strconv"
	"strings"
)

// place is where a tensor has its cell: a kind of tensor and a layer, -1 if it is of none.
type place struct {
	kind  string
	layer int
}

// placeOf takes a name apart at its first number. The kind is what is left without the
// layer; further numbers, as those of experts, become an asterisk.
func placeOf(name string) place {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		layer, ok := layerNumber(p)
		if !ok || i == len(parts)-1 {
			continue
		}
		rest := slices.Clone(parts[i+1:])
		for j, p := range rest {
			if _, ok := layerNumber(p); ok {
				rest[j] = "*"
			}
		}
		return place{strings.Join(parts[:i], ".") + ".*." + strings.Join(rest, "."), layer}
	}
	return place{name, -1}
}

// layerNumber reads a number of a layer; what has more digits than layers ever have is none.
func layerNumber(s string) (int, bool) {
	if s == "" || len(s) > 5 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// sharedPrefix is the longest beginning, up to a dot, that all kinds with layers have.
func sharedPrefix(kinds []string) string {
	prefix := ""
	for i, k := range kinds {
		if i == 0 {
			prefix = k
			continue
		}
		for !strings.HasPrefix(k, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	return prefix[:strings.LastIndexByte(prefix, '.')+1]
}

// elided shortens a label in the middle; names differ at both ends.
func elided(label string, most int) string {
	runes := []rune(label)
	if len(runes) <= most {
		return label
	}
	head := (most - 1) / 3
	return string(runes[:head]) + "…" + string(runes[len(runes)-(most-1-head):])
}
