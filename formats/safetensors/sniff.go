package safetensors

import (
	"bytes"
	"unicode/utf8"
)

// sniffSize is how much of a file is looked at to tell what it is.
const sniffSize = 512

// signatures are the starts of files that are often found under the name of a
// safetensors file. As a header length, nearly each is far above the limit.
var signatures = []struct{ start, kind string }{
	{"version https://git-lfs", "a Git LFS pointer in place of the weights"},
	{"PK\x03\x04", "a zip archive, as PyTorch checkpoints (.bin, .pt) are"},
	{"PK\x05\x06", "an empty zip archive"},
	{"\x80\x02", "a Python pickle, as old PyTorch checkpoints (.bin, .pt) are"},
	{"\x80\x03", "a Python pickle"},
	{"\x80\x04", "a Python pickle"},
	{"\x80\x05", "a Python pickle"},
	{"GGUF", "a GGUF file"},
	{"\x1f\x8b", "gzip compressed"},
	{"\x28\xb5\x2f\xfd", "zstd compressed"},
	{"\x89HDF\r\n\x1a\n", "an HDF5 file"},
	{"\x93NUMPY", "a NumPy array"},
}

// notSafetensors reports a file that has no header, and what it looks like
// instead.
func notSafetensors(start []byte, reason string) error {
	if kind := recognise(start); kind != "" {
		reason += "; file is " + kind
	}
	return &FormatError{Reason: reason}
}

// recognise names the kind of a file from its start, or returns "".
func recognise(start []byte) string {
	for _, s := range signatures {
		if bytes.HasPrefix(start, []byte(s.start)) {
			return s.kind
		}
	}
	if len(start) > 262 && string(start[257:262]) == "ustar" {
		return "a tar archive"
	}
	text := bytes.TrimLeft(bytes.TrimPrefix(start, []byte("\xEF\xBB\xBF")), " \t\r\n")
	if len(text) == 0 || !isText(text) {
		return ""
	}
	switch text[0] {
	case '<':
		return "an HTML or XML page in place of the weights"
	case '{', '[':
		return "JSON text, such as an error message in place of the weights"
	}
	return "text that begins with " + excerpt(firstLine(text))
}

// isText reports whether all bytes are printable UTF-8 or white space; the
// last character may be cut.
func isText(start []byte) bool {
	for len(start) > 0 {
		r, size := utf8.DecodeRune(start)
		switch {
		case r == utf8.RuneError && size == 1:
			return !utf8.FullRune(start)
		case r < 0x20 && r != '\t' && r != '\n' && r != '\r', r == 0x7F:
			return false
		}
		start = start[size:]
	}
	return true
}

func firstLine(text []byte) string {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	return string(line[:min(len(line), 40)])
}
