package convert

import (
	"errors"
	"fmt"
	"strings"

	"github.com/loratool/loratool/formats/tokenizer"
	"github.com/loratool/loratool/internal/strictjson"
)

// This file names the pre-tokenizer of a BPE model. There are two witnesses. The regular
// expressions of tokenizer.json say how text is split, whatever was done to the
// vocabulary, but several names may stand for them, or none. The fingerprint, by which
// llama.cpp's converter goes alone, is one name's, but nobody knows it after a token was
// added. Where they contradict each other the expressions count: they are what is done to
// text, and two tokenizers that differ in rare texts only have one fingerprint.

// preTokenizer settles how text is split before the merges.
func (g *ggufPlanner) preTokenizer(v *vocabulary, fast *tokenizer.Fast, config *strictjson.Object) error {
	found, err := fast.Pre()
	_, unknown := errors.AsType[*tokenizer.UnknownPreError](err)
	switch {
	case err != nil && !unknown:
		return g.inFile(fastFile, err)
	case v.pre != "":
		if v.pre != found {
			g.decide("pre-tokenizer", fmt.Sprintf("the pre-tokenizer is %s, as asked for", v.pre))
		}
		return nil
	}
	other, reason := fingerprintPre(fast, config)
	var why string
	switch {
	case unknown && other == "":
		return g.inFile(fastFile, fmt.Errorf("%w, and %s; --pre NAME says which to take (known by their expressions: %s)", err, reason,
			strings.Join(tokenizer.PreNames(), ", ")))
	case unknown:
		found, why = other, "by its fingerprint; its regular expressions in %s are not known"
	case other == "":
		why = "by the regular expressions in %s"
	case other == found:
		why = "by the regular expressions in %s and by its fingerprint"
	case tokenizer.SplitAlike(other, found):
		found, why = other, "by its fingerprint; a runtime splits text as for "+found+", by the regular expressions in %s"
	default:
		why = "by the regular expressions in %s; its fingerprint is that of " + other + ", which splits text otherwise and which --pre " + other + " would take"
	}
	v.pre = found
	g.decide("pre-tokenizer", fmt.Sprintf("the pre-tokenizer is %s, "+why, v.pre, fastFile))
	return nil
}

// fingerprintPre returns the name that llama.cpp's converter has for the fingerprint of a
// tokenizer, or the reason why there is none.
func fingerprintPre(fast *tokenizer.Fast, config *strictjson.Object) (name, reason string) {
	encoder, err := tokenizer.NewEncoder(fast)
	if err != nil {
		return "", "it has no fingerprint (" + err.Error() + ")"
	}
	var hash string
	for _, before := range beginnings(fast, config) {
		if hash, err = encoder.Fingerprint(before...); err != nil {
			return "", "it has no fingerprint (" + err.Error() + ")"
		}
		if name, ok := tokenizer.PreOfFingerprint(hash); ok {
			return name, ""
		}
	}
	return "", "its fingerprint " + hash + " is not known either"
}

// beginnings are the ids that may stand before the text of a fingerprint: the class of a
// tokenizer puts the beginning token there if tokenizer_config.json says so, whether
// tokenizer.json does or not.
func beginnings(fast *tokenizer.Fast, config *strictjson.Object) [][]int {
	all := [][]int{nil}
	if config == nil {
		return all
	}
	if add, _, err := config.OptBool("add_bos_token"); err != nil || !add {
		return all
	}
	text := tokenText(config, "bos")
	for _, t := range fast.Added {
		if text != "" && t.Content == text {
			return [][]int{{int(t.ID)}, nil}
		}
	}
	return all
}
