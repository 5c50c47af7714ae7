package gguf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/saferead"
)

// Set is a model: one file, or all files of a split one. It is safe for
// concurrent use.
type Set struct {
	files   []*File
	paths   []string
	tensors []SetTensor
	byName  map[string]int32
}

// SetTensor is a tensor of a set and the file that holds it.
type SetTensor struct {
	Tensor
	File int // index of [Set.Files]
}

// ErrNoGGUF is wrapped by [OpenSet] if a folder has no GGUF file.
var ErrNoGGUF = errors.New("no .gguf file")

// OpenSet opens a model. The path is that of a file, of any file of a split
// model, whose others lie beside it, or of a folder that holds exactly one
// model. All files of a split model must be there and agree on what it is.
func OpenSet(path string) (*Set, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if path, err = findModel(path); err != nil {
			return nil, err
		}
	}
	s := &Set{byName: make(map[string]int32)}
	err := s.open(path)
	if err == nil {
		err = s.collect()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// SetOf makes a set of one file that is no part of a split model; path is what it is
// called. It closes the file.
func SetOf(f *File, path string) (*Set, error) {
	s := &Set{files: []*File{f}, paths: []string{path}, byName: make(map[string]int32)}
	return s, s.collect()
}

// findModel returns the only model of a folder: its only file, or the first
// file of the only split model.
func findModel(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	type split struct {
		prefix string
		count  int
	}
	var models []string // a path of each
	seen := make(map[split]bool)
	for _, e := range entries {
		if e.IsDir() || !strings.EqualFold(filepath.Ext(e.Name()), ".gguf") {
			continue
		}
		if prefix, _, count, ok := ParseShardName(e.Name()); ok {
			if seen[split{prefix, count}] {
				continue
			}
			seen[split{prefix, count}] = true
		}
		models = append(models, filepath.Join(dir, e.Name()))
	}
	switch len(models) {
	case 0:
		return "", fmt.Errorf("%s: %w", saferead.Printable(dir), ErrNoGGUF)
	case 1:
		return models[0], nil
	}
	return "", fmt.Errorf("%s: %d models, among them %s and %s; name one", saferead.Printable(dir), len(models),
		excerpt(filepath.Base(models[0])), excerpt(filepath.Base(models[1])))
}

// open opens all files, those of a split model in their order.
func (s *Set) open(path string) error {
	given, err := Open(path)
	if err != nil {
		return err
	}
	no, count, err := splitOf(given)
	if err == nil && count <= 1 {
		s.files, s.paths = []*File{given}, []string{path}
		return nil
	}
	given.Close() // opened again in its turn, so that one place opens files
	if err != nil {
		return inFile(path, err)
	}
	prefix, nameNo, nameCount, ok := ParseShardName(path)
	switch {
	case !ok:
		return inFile(path, &FormatError{Reason: fmt.Sprintf("is file %d of a model of %d files%s, but is not named like one: %s",
			no+1, count, joined(given, no), excerpt(ShardName("NAME", no, count)))})
	case nameNo != no || nameCount != count:
		return inFile(path, &FormatError{Reason: fmt.Sprintf("is named as file %d of %d but is file %d of %d",
			nameNo+1, nameCount, no+1, count)})
	}
	if err := checkPresent(prefix, count); err != nil {
		return err
	}
	for i := range count {
		if err := s.openShard(ShardName(prefix, i, count), i, count); err != nil {
			return err
		}
	}
	return nil
}

// joined adds to a message that the other files may stand behind this one.
func joined(f *File, no int) string {
	if no == 0 && f.Trailing() > 0 {
		return fmt.Sprintf(" with %d bytes behind its end, as if they had been joined with cat", f.Trailing())
	}
	return ""
}

// checkPresent names files of a split model that are missing.
func checkPresent(prefix string, count int) error {
	const shown = 5
	var missing []string
	n := 0
	for i := range count {
		path := ShardName(prefix, i, count)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if n++; n <= shown {
			missing = append(missing, excerpt(filepath.Base(path)))
		}
	}
	switch {
	case n == 0:
		return nil
	case n > shown:
		missing = append(missing, fmt.Sprintf("and %d more", n-shown))
	}
	return fmt.Errorf("%s: %w", saferead.Printable(filepath.Dir(prefix)),
		&FormatError{Reason: fmt.Sprintf("%d of %d files of the model are missing: %s", n, count, strings.Join(missing, ", "))})
}

// openShard opens file i of count and checks what it says of itself.
func (s *Set) openShard(path string, i, count int) error {
	f, err := Open(path)
	if err != nil {
		return err
	}
	s.files, s.paths = append(s.files, f), append(s.paths, path)
	no, n, err := splitOf(f)
	switch {
	case err != nil:
	case n <= 1:
		err = &FormatError{Reason: fmt.Sprintf("is named as file %d of %d but says that it is not split", i+1, count)}
	case no != i || n != count:
		err = &FormatError{Reason: fmt.Sprintf("is named as file %d of %d but is file %d of %d", i+1, count, no+1, n)}
	case i > 0:
		err = s.checkKeys(f)
	}
	if err != nil {
		return inFile(path, err)
	}
	return nil
}

// checkKeys refuses keys that a reader would lose: all but those of the split
// and the alignment, which is that of the single file, stand in the first file.
func (s *Set) checkKeys(f *File) error {
	for key, v := range f.Metadata().All() {
		if key == KeyAlignment || slices.Contains(splitKeys, key) {
			continue
		}
		first, ok := s.files[0].Metadata().Get(key)
		if !ok || !first.Equal(v) {
			return &FormatError{Key: key, Reason: "differs from the first file of the model, where readers look for it"}
		}
	}
	return nil
}

// splitOf returns the place of a file in its model and the number of files, 0
// or 1 if it is not split. Types are exact, as in the reference.
func splitOf(f *File) (no, count int, err error) {
	count, ok, err := splitKey(f, KeySplitCount, Uint16)
	if err != nil || !ok || count <= 1 {
		return 0, count, err
	}
	no, ok, err = splitKey(f, KeySplitNo, Uint16)
	switch {
	case err != nil:
		return 0, 0, err
	case !ok:
		return 0, 0, &FormatError{Key: KeySplitNo, Reason: fmt.Sprintf("missing in a model of %d files", count)}
	case no >= count:
		return 0, 0, &FormatError{Key: KeySplitNo, Reason: fmt.Sprintf("is %d in a model of %d files", no, count)}
	}
	return no, count, nil
}

// splitKey reads a key that must be of exactly one type, or reports false if it
// is absent.
func splitKey(f *File, key string, t ValueType) (int, bool, error) {
	v, ok := f.Metadata().Get(key)
	if !ok {
		return 0, false, nil
	}
	if v.Type() != t {
		return 0, false, &FormatError{Key: key, Reason: fmt.Sprintf("is %s, must be %s", v.Describe(), t)}
	}
	n, err := v.Int()
	return int(n), true, err
}

// collect lists the tensors of all files and checks that they are all there.
func (s *Set) collect() error {
	for i, f := range s.files {
		for _, t := range f.Tensors() {
			if j, twice := s.byName[t.Name]; twice {
				return inFile(s.paths[i], &FormatError{Tensor: t.Name,
					Reason: "tensor is in " + excerpt(filepath.Base(s.paths[s.tensors[j].File])) + " too"})
			}
			s.byName[t.Name] = int32(len(s.tensors))
			s.tensors = append(s.tensors, SetTensor{t, i})
		}
	}
	if len(s.files) == 1 {
		return nil
	}
	for i, f := range s.files {
		total, ok, err := splitKey(f, KeySplitTensors, Int32)
		switch {
		case err == nil && !ok && i == 0: // the reference looks in the first file only
			err = &FormatError{Key: KeySplitTensors, Reason: "missing"}
		case err == nil && ok && total != len(s.tensors):
			err = &FormatError{Key: KeySplitTensors, Reason: fmt.Sprintf("is %d, the files have %d tensors together", total, len(s.tensors))}
		}
		if err != nil {
			return inFile(s.paths[i], err)
		}
	}
	return nil
}

// inFile names the file that an error is about.
func inFile(path string, err error) error {
	return fmt.Errorf("%s: %w", saferead.Printable(path), err)
}

// Close closes all files and returns the first error.
func (s *Set) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Files returns the files in their order. The slice belongs to the set and must
// not be changed.
func (s *Set) Files() []*File { return s.files[:len(s.files):len(s.files)] }

// Paths returns the paths of the files. The slice belongs to the set and must
// not be changed.
func (s *Set) Paths() []string { return s.paths[:len(s.paths):len(s.paths)] }

// Metadata returns the keys and values of the model, those of its first file,
// without the three of a split. It may be changed.
func (s *Set) Metadata() *Metadata {
	m := s.files[0].Metadata().Clone()
	for _, key := range splitKeys {
		m.Delete(key)
	}
	return m
}

// Tensors returns the tensors of all files in order. The slice belongs to the
// set and must not be changed.
func (s *Set) Tensors() []SetTensor { return s.tensors[:len(s.tensors):len(s.tensors)] }

// Lookup returns the tensor of the given name.
func (s *Set) Lookup(name string) (SetTensor, bool) {
	i, ok := s.byName[name]
	if !ok {
		return SetTensor{}, false
	}
	return s.tensors[i], true
}

// Section returns the bytes of a tensor; nothing is read yet.
func (s *Set) Section(name string) (*Section, error) {
	t, ok := s.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("no tensor %s", excerpt(name))
	}
	return s.files[t.File].Section(name)
}
