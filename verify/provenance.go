package verify

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/internal/strictjson"
	"github.com/loratool/loratool/plan"
)

const (
	// sumsFile is what sha256sum writes.
	sumsFile = "SHA256SUMS"
	// recordKey is the metadata entry in which loratool records what it read.
	recordKey = "loratool"
)

// Provenance adds to a report what the records of a model say: the hashes of its
// files in SHA256SUMS, those of its tensors in manifest.json, and those of the inputs that it was made of, compared with the
// inputs given. Every file concerned is read once.
func Provenance(ctx context.Context, r *Report, m *checkpoint.Model, inputs []*checkpoint.Model, o Options) error {
	r.begin(familyProvenance)
	p := &provenance{Report: r, hashes: make(map[string]string)}
	if err := p.checkSums(ctx, m, o); err != nil {
		return err
	}
	if err := p.checkManifest(ctx, m, o); err != nil {
		return err
	}
	if len(inputs) == 0 {
		return nil
	}
	return p.checkInputs(ctx, m, inputs, o)
}

type provenance struct {
	*Report
	hashes map[string]string // by path
}

// checkSums compares the files of the folder with SHA256SUMS.
func (p *provenance) checkSums(ctx context.Context, m *checkpoint.Model, o Options) error {
	s := &subject{Report: p.Report, model: m}
	data, ok, err := s.sideFile(sumsFile, maxSideFile)
	if err != nil || !ok {
		return err
	}
	sums, err := parseSums(data)
	if err != nil {
		p.add("sums-unreadable", "", "%s: %v", sumsFile, err)
		return nil
	}
	listed := make(map[string]bool)
	var paths []string
	for _, sum := range sums {
		listed[sum.name] = true
		path := filepath.Join(m.Path, filepath.FromSlash(sum.name))
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			p.add("sums-missing", "", "%q is listed in %s and not there", sum.name, sumsFile)
			continue
		}
		paths = append(paths, path)
	}
	if err := p.hash(ctx, paths, o); err != nil {
		return err
	}
	for _, sum := range sums {
		got, ok := p.hashes[filepath.Join(m.Path, filepath.FromSlash(sum.name))]
		if ok && got != sum.hash {
			p.add("sums-differ", "", "%q has the hash %s, in %s it is %s", sum.name, got, sumsFile, sum.hash)
		}
	}
	for _, f := range m.Files() {
		if !listed[f.Name] {
			p.add("sums-unlisted", "", "%q is not listed in %s", f.Name, sumsFile)
		}
	}
	return nil
}

// sum is a line of SHA256SUMS.
type sum struct{ hash, name string }

// parseSums reads lines of a hash, a space, a space or an asterisk, and a name. Names
// lead nowhere outside of the folder.
func parseSums(data []byte) ([]sum, error) {
	var sums []sum
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		hash, name, ok := strings.Cut(line, " ")
		if ok && (strings.HasPrefix(name, " ") || strings.HasPrefix(name, "*")) {
			name = name[1:]
		}
		raw, err := hex.DecodeString(hash)
		if !ok || err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("line %d is no hash and name", n)
		}
		name = strings.TrimPrefix(name, "./")
		if !filepath.IsLocal(filepath.FromSlash(name)) || strings.ContainsRune(name, 0) {
			return nil, fmt.Errorf("line %d: %q is outside of the folder", n, name)
		}
		sums = append(sums, sum{strings.ToLower(hash), name})
	}
	return sums, lines.Err()
}

// checkInputs compares the inputs given with the record in the model's metadata. An
// input is known by the names and hashes of its files alone: folders may have been
// renamed.
func (p *provenance) checkInputs(ctx context.Context, m *checkpoint.Model, inputs []*checkpoint.Model, o Options) error {
	text, ok := m.Metadata()[recordKey]
	if !ok {
		p.add("record-missing", "", "the model does not say what it was made of")
		return nil
	}
	recorded, err := parseRecord(text)
	if err != nil {
		p.add("record-unreadable", "", "the record of what the model was made of: %v", err)
		return nil
	}
	var paths []string
	for _, in := range inputs {
		for _, f := range in.Files() {
			paths = append(paths, f.Path)
		}
	}
	if err := p.hash(ctx, paths, o); err != nil {
		return err
	}
	given := make(map[sum]bool)
	for _, in := range inputs {
		for _, f := range in.Files() {
			s := sum{p.hashes[f.Path], f.Name}
			given[s] = true
			if !slices.Contains(recorded, s) {
				p.add("input-differs", "", "%q of %s is not what the model was made of: its hash is %s", f.Name, in.Name, s.hash)
			}
		}
	}
	for _, s := range recorded {
		if !given[s] {
			p.add("input-not-given", "", "the model was made of a file %q of hash %s, which is not among the inputs given", s.name, s.hash)
		}
	}
	return nil
}

// parseRecord returns the files of all inputs of a record, each once.
func parseRecord(text string) ([]sum, error) {
	root, err := strictjson.ParseObject([]byte(text))
	if err != nil {
		return nil, err
	}
	inputs, err := root.Items("inputs")
	if err != nil {
		return nil, err
	}
	var sums []sum
	for _, v := range inputs {
		in, err := v.Object()
		if err != nil {
			return nil, err
		}
		files, err := in.Object("sha256")
		if err != nil {
			return nil, err
		}
		for name, v := range files.All() {
			hash, err := v.Text()
			if err != nil {
				return nil, err
			}
			if s := (sum{hash, name}); !slices.Contains(sums, s) {
				sums = append(sums, s)
			}
		}
	}
	return sums, nil
}

// hash makes the hashes of files that are not known yet.
func (p *provenance) hash(ctx context.Context, paths []string, o Options) error {
	var missing []string
	for _, path := range paths {
		if _, ok := p.hashes[path]; !ok && !slices.Contains(missing, path) {
			missing = append(missing, path)
		}
	}
	found := make([]string, len(missing))
	tasks := make([]plan.Task, len(missing))
	for i, path := range missing {
		size := int64(0)
		if info, err := os.Stat(path); err == nil {
			size = info.Size()
		}
		tasks[i] = plan.Task{Name: filepath.Base(path), Reads: size, Scratch: chunkBytes, Do: func(ctx context.Context, _ int) (err error) {
			found[i], err = hashFile(ctx, path)
			return err
		}}
	}
	if err := engine.Each(ctx, tasks, o.Engine); err != nil {
		return err
	}
	for i, path := range missing {
		p.hashes[path] = found[i]
	}
	return nil
}

// hashFile returns the SHA-256 of a file in hexadecimal digits.
func hashFile(ctx context.Context, path string) (string, error) {
	f, _, err := saferead.OpenRegular(path)
	if err != nil {
		return "", &checkpoint.InputError{Path: path, Err: err}
	}
	defer f.Close() // only read from
	h, buf := sha256.New(), make([]byte, chunkBytes)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}
