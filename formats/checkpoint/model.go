// Package checkpoint opens a model or an adapter wherever it lies - one file, a
// sharded folder, the hub cache - as one immutable set of named, lazily read
// tensors, and writes a new one from a layout that is decided to the byte.
//
// The main types are [Model], [Memory], [Layout] and [Sink]. Opening reads
// headers and JSON only. Paths that come from a file (the shard names of an
// index) must be plain names inside the folder; links are followed when
// reading, as hub caches consist of them, and never when writing.
package checkpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"unicode"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/hfrepo"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/tensor"
	"github.com/loratool/loratool/internal/saferead"
	"github.com/loratool/loratool/internal/strictjson"
)

// The file names of the Hugging Face layout.
const (
	weightsName        = "model.safetensors"
	indexName          = "model.safetensors.index.json"
	configName         = "config.json"
	adapterWeightsName = "adapter_model.safetensors"
	adapterConfigName  = "adapter_config.json"
	cardName           = "README.md"
)

// maxConfigSize bounds config.json and adapter_config.json; real ones stay
// below a tenth of it even with long pattern tables.
const maxConfigSize = 1 << 20

// Checkpoint is an immutable set of named, lazily read tensors.
type Checkpoint interface {
	Specs() []tensor.Spec                  // in the order of the data
	Open(name string) (io.ReaderAt, error) // exactly Spec.Size() bytes; safe for concurrent use
}

var (
	_ Checkpoint = (*Model)(nil)
	_ Checkpoint = (*Memory)(nil)
)

// InputError says that an input is malformed, unsupported, incomplete or does
// not fit: the file and what is wrong with it.
type InputError struct {
	Path string
	Err  error
}

func (e *InputError) Error() string { return saferead.Printable(e.Path) + ": " + e.Err.Error() }

func (e *InputError) Unwrap() error { return e.Err }

func inputErrorf(path, format string, args ...any) error {
	return &InputError{path, fmt.Errorf(format, args...)}
}

// Model is an opened checkpoint. It is safe for concurrent reading.
type Model struct {
	Path     string // as resolved
	Name     string // last element of the path, or the repository id
	Commit   string // of a repository in the hub cache
	IsFolder bool
	Computed bool               // the tensors are those of [Model.As]
	Config   *strictjson.Object // config.json or adapter_config.json, nil without one

	settings []*file // the JSON files that were read, before they were
	files    []*file
	specs    []tensor.Spec
	byName   map[string]located
	gguf     *gguf.Set // nil unless the files are GGUF
	sidecars []Sidecar // in place of the files of the folder, of a computed model

	raw       []tensor.Spec       // as stored
	derived   map[string]*derived // what is computed from several of them
	nestedMap *[256]float32       // the last one read
}

// file is one container file of a model.
type file struct {
	name string
	path string
	st   *safetensors.File // either this
	gguf *gguf.File        // or that
	// computed makes the tensors of a model that is seen as another.
	computed Checkpoint
	info     fs.FileInfo
}

type located struct {
	file *file
	safetensors.Tensor
}

// Open opens a model by path or, when no such path exists, by repository id
// from the local hub cache. Of a GGUF model that is split, any file will do; its
// tensors in blocks are read as F32 ([Model.Derived], [Model.GGUF]).
func Open(ref string, cache hfrepo.Cache) (*Model, error) {
	return open(ref, cache, openFolder)
}

// OpenAdapter opens a PEFT adapter folder, adapter_config.json and
// adapter_model.safetensors, or an adapter that is a GGUF file.
func OpenAdapter(ref string, cache hfrepo.Cache) (*Model, error) {
	return open(ref, cache, openAdapterFolder)
}

func open(ref string, cache hfrepo.Cache, folder func(*Model) error) (*Model, error) {
	m := &Model{Path: ref, Name: baseName(ref), byName: make(map[string]located)}
	st, err := os.Stat(ref)
	if errors.Is(err, fs.ErrNotExist) && hfrepo.IsRepoID(ref) && !strings.HasSuffix(ref, ".safetensors") && !strings.HasSuffix(ref, ggufExt) {
		dir, commit, err := cache.Snapshot(ref)
		if _, ok := errors.AsType[*hfrepo.NotCachedError](err); ok {
			return nil, err
		}
		if err != nil {
			return nil, &InputError{ref, err}
		}
		m.Path, m.Commit = dir, commit
		m.Name, _, _ = strings.Cut(ref, "@")
		st, err = os.Stat(dir)
		if err != nil {
			return nil, &InputError{ref, err}
		}
		m.IsFolder = st.IsDir()
	} else if err != nil {
		return nil, &InputError{ref, errors.Unwrap(err)}
	} else {
		m.IsFolder = st.IsDir()
	}
	switch {
	case m.IsFolder:
		m.noteSettings()
		err = folder(m)
	case isGGUF(m.Path):
		err = m.openGGUF(m.Path)
	default:
		err = m.openFile(m.Path)
	}
	if err == nil {
		err = m.collect()
	}
	if err == nil {
		err = m.derive()
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// noteSettings remembers what the JSON files of the folder are before they are
// read.
func (m *Model) noteSettings() {
	for _, name := range []string{configName, adapterConfigName, indexName} {
		path := filepath.Join(m.Path, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			m.settings = append(m.settings, &file{name: name, path: path, info: info})
		}
	}
}

// baseName returns the last element of a path; of "." and "..", that of the
// folder they stand for.
func baseName(path string) string {
	name := filepath.Base(path)
	if name == "." || name == ".." {
		if abs, err := filepath.Abs(path); err == nil {
			return filepath.Base(abs)
		}
	}
	return name
}

// openFile adds one safetensors file.
func (m *Model) openFile(path string) error {
	if err := refuseOtherFormats(path); err != nil {
		return err
	}
	f := &file{name: filepath.Base(path), path: path}
	m.files = append(m.files, f)
	var err error
	if f.st, err = safetensors.Open(path); err != nil {
		return asInputError(path, err)
	}
	if f.info, err = os.Stat(path); err != nil {
		return &InputError{path, err}
	}
	return nil
}

// refuseOtherFormats names the formats that are not read, instead of parsing
// them as something else.
func refuseOtherFormats(path string) error {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".bin", ".pt", ".pth", ".ckpt":
		return inputErrorf(path, "PyTorch pickle files are not supported; save the model as safetensors")
	}
	return nil
}

// asInputError keeps a reading error's text and says that the input is at
// fault.
func asInputError(path string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = fmt.Errorf("%s: %w", pe.Op, pe.Err)
	} else if inner := errors.Unwrap(err); inner != nil && strings.HasPrefix(err.Error(), saferead.Printable(path)+": ") {
		err = inner // it names the path already
	}
	return &InputError{path, err}
}

// openFolder opens a model folder. As in transformers, a complete
// model.safetensors wins over an index; without either, the only safetensors
// file of the folder is taken, and without any the only GGUF model.
func openFolder(m *Model) error {
	var err error
	if m.Config, err = readConfig(filepath.Join(m.Path, configName), strictjson.ParsePythonObject); err != nil {
		return err
	}
	switch {
	case exists(filepath.Join(m.Path, weightsName)):
		return m.openFile(filepath.Join(m.Path, weightsName))
	case exists(filepath.Join(m.Path, indexName)):
		return m.openShards()
	}
	entries, err := os.ReadDir(m.Path)
	if err != nil {
		return &InputError{m.Path, err}
	}
	var weights, others []string
	holdsGGUF := false
	for _, e := range entries {
		switch ext := filepath.Ext(e.Name()); {
		case ext == ".safetensors":
			weights = append(weights, e.Name())
		case strings.EqualFold(ext, ggufExt):
			holdsGGUF = true
		case ext == ".bin", ext == ".pt", ext == ".pth":
			others = append(others, e.Name())
		}
	}
	switch {
	case len(weights) == 1 && weights[0] == adapterWeightsName:
		return openAdapterFolder(m)
	case len(weights) == 1:
		return m.openFile(filepath.Join(m.Path, weights[0]))
	case len(weights) > 1:
		return inputErrorf(m.Path, "%d safetensors files but no %s that says what they are", len(weights), indexName)
	case holdsGGUF:
		return m.openGGUF(m.Path)
	case len(others) > 0:
		return refuseOtherFormats(filepath.Join(m.Path, others[0]))
	}
	return inputErrorf(m.Path, "no weights: neither %s nor %s", weightsName, indexName)
}

// openAdapterFolder opens an adapter folder.
func openAdapterFolder(m *Model) error {
	var err error
	configPath := filepath.Join(m.Path, adapterConfigName)
	if m.Config, err = readConfig(configPath, strictjson.ParseObject); err != nil {
		return err
	}
	if m.Config == nil {
		return inputErrorf(m.Path, "no %s: not a PEFT adapter folder", adapterConfigName)
	}
	weights := filepath.Join(m.Path, adapterWeightsName)
	if !exists(weights) {
		if pickled := filepath.Join(m.Path, "adapter_model.bin"); exists(pickled) {
			return refuseOtherFormats(pickled)
		}
		return inputErrorf(m.Path, "no %s", adapterWeightsName)
	}
	return m.openFile(weights)
}

// openShards opens the files of an index and checks that index and files agree
// on every tensor.
func (m *Model) openShards() error {
	path := filepath.Join(m.Path, indexName)
	data, err := readSmall(path, hfrepo.MaxIndexSize)
	if err != nil {
		return asInputError(path, err)
	}
	index, err := hfrepo.ParseIndex(data)
	if err != nil {
		return jsonError(path, data, err)
	}
	if err := m.checkPresent(path, index.Shards()); err != nil {
		return err
	}
	for _, shard := range index.Shards() {
		if err := m.openFile(filepath.Join(m.Path, shard)); err != nil {
			return err
		}
	}
	for _, f := range m.files {
		for _, t := range f.st.Tensors() {
			if shard, ok := index.File(t.Name); !ok {
				return inputErrorf(f.path, "tensor %q is not in the index", t.Name)
			} else if shard != f.name {
				return inputErrorf(f.path, "tensor %q should be in %s according to the index", t.Name, shard)
			}
		}
	}
	byName := make(map[string]*file)
	for _, f := range m.files {
		byName[f.name] = f
	}
	for _, name := range index.Tensors() {
		shard, _ := index.File(name)
		if _, ok := byName[shard].st.Lookup(name); !ok {
			return inputErrorf(path, "tensor %q is not in %s", name, shard)
		}
	}
	return nil
}

// checkPresent names the files of an index that are missing, the first few of
// many.
func (m *Model) checkPresent(index string, shards []string) error {
	const shown = 5
	var missing []string
	more := 0
	for _, shard := range shards {
		switch {
		case exists(filepath.Join(m.Path, shard)):
		case len(missing) < shown:
			missing = append(missing, fmt.Sprintf("%q", shard))
		default:
			more++
		}
	}
	switch {
	case len(missing) == 0:
		return nil
	case more > 0:
		return inputErrorf(index, "%d of its files are missing: %s and %d more", len(missing)+more, strings.Join(missing, ", "), more)
	}
	return inputErrorf(index, "%d of its files are missing: %s", len(missing), strings.Join(missing, ", "))
}

// jsonError is the error for a file that is no JSON; what is often found in its
// place is named.
func jsonError(path string, data []byte, err error) error {
	text := strings.TrimLeft(string(data[:min(len(data), 64)]), " \t\r\n")
	switch {
	case strings.HasPrefix(text, "version https://git-lfs"):
		return inputErrorf(path, "it is a Git LFS pointer in place of the file: %w", err)
	case strings.HasPrefix(text, "<"):
		return inputErrorf(path, "it is an HTML or XML page in place of the file: %w", err)
	}
	return &InputError{path, err}
}

// collect makes the list of all tensors in the order of the data.
func (m *Model) collect() error {
	for _, f := range m.files {
		tensors, err := f.tensors()
		if err != nil {
			return err
		}
		for _, t := range tensors {
			if other, ok := m.byName[t.Name]; ok {
				return inputErrorf(f.path, "tensor %q is also in %s", t.Name, other.file.name)
			}
			m.byName[t.Name] = located{f, t}
			m.specs = append(m.specs, t.Spec)
		}
	}
	return nil
}

// readConfig parses a JSON file of the folder; nil if there is none.
func readConfig(path string, parse func([]byte) (*strictjson.Object, error)) (*strictjson.Object, error) {
	if !exists(path) {
		return nil, nil
	}
	data, err := readSmall(path, maxConfigSize)
	if err != nil {
		return nil, asInputError(path, err)
	}
	config, err := parse(data)
	if err != nil {
		return nil, jsonError(path, data, err)
	}
	return config, nil
}

// readSmall reads a whole file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, size, err := saferead.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("%d bytes, at most %d are read", size, limit)
	}
	return saferead.New(f, size).Bytes(0, size)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// IsAdapter reports whether the folder was opened as a PEFT adapter.
func (m *Model) IsAdapter() bool {
	return m.IsFolder && !m.Computed && len(m.files) == 1 && m.files[0].name == adapterWeightsName
}

// Specs returns the tensors in the order of their data: file by file, rising
// offsets. What a quantizer has split is one tensor again ([Model.Derived]).
func (m *Model) Specs() []tensor.Spec { return m.specs }

// Lookup returns the spec of a tensor.
func (m *Model) Lookup(name string) (tensor.Spec, bool) {
	if d, ok := m.derived[name]; ok {
		return d.spec, true
	}
	l, ok := m.byName[name]
	return l.Spec, ok
}

// Open returns the bytes of a tensor: exactly Spec.Size() of them.
func (m *Model) Open(name string) (io.ReaderAt, error) {
	if d, ok := m.derived[name]; ok {
		return d.open(), nil
	}
	l, ok := m.byName[name]
	if !ok {
		return nil, fmt.Errorf("%s has no tensor %q", m.Name, name)
	}
	return l.file.section(name)
}

// Origin says which file holds a tensor and where its data begin.
func (m *Model) Origin(name string) (file string, offset int64) {
	l := m.byName[name]
	return l.file.name, l.Offset
}

// Metadata returns the string map of the weights file; of a sharded model the
// entries that all files agree on. GGUF has typed keys instead ([Model.GGUF]).
func (m *Model) Metadata() map[string]string {
	merged := make(map[string]string)
	for i, f := range m.files {
		if f.st == nil {
			return merged
		}
		md := f.st.Metadata()
		if i == 0 {
			for k, v := range md {
				merged[k] = v
			}
			continue
		}
		for k, v := range merged {
			if md[k] != v {
				delete(merged, k)
			}
		}
	}
	return merged
}

// Files returns the weight files, and the JSON files that say what the weights
// mean, as they have to be recorded for provenance.
func (m *Model) Files() []InputFile {
	var files []InputFile
	for _, f := range slices.Concat(m.settings, m.files) {
		files = append(files, InputFile{f.name, f.path, f.info.Size()})
	}
	return files
}

// InputFile is one file of a model.
type InputFile struct {
	Name, Path string
	Size       int64
}

// CheckUnchanged fails if a file is not the one that was opened: another process
// has written to it or put another in its place.
func (m *Model) CheckUnchanged() error {
	for _, f := range slices.Concat(m.settings, m.files) {
		now, err := os.Stat(f.path)
		if err != nil {
			return asInputError(f.path, err)
		}
		if !os.SameFile(now, f.info) || now.Size() != f.info.Size() || !now.ModTime().Equal(f.info.ModTime()) {
			return inputErrorf(f.path, "the file changed while it was read")
		}
	}
	return nil
}

// Identity tells a model, as it was opened, from any other: where its files are,
// how long, and when they were changed. It is for one machine and not for an
// output.
func (m *Model) Identity() string {
	h := sha256.New()
	for _, f := range slices.Concat(m.settings, m.files) {
		fmt.Fprintf(h, "%q %d %d\n", f.path, f.info.Size(), f.info.ModTime().UnixNano())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Close closes the files.
func (m *Model) Close() error {
	var errs []error
	if m.gguf != nil {
		errs = append(errs, m.gguf.Close())
	}
	for _, f := range m.files {
		if f.st != nil {
			errs = append(errs, f.st.Close())
		}
	}
	return errors.Join(errs...)
}

// SideFiles returns the files of the folder that belong to a model beside its
// weights and config, sorted: tokenizer, processor and generation settings,
// chat templates, custom code, licences, and the folders of the modules that
// sentence-transformers puts behind a model.
func (m *Model) SideFiles() ([]InputFile, error) {
	if !m.IsFolder {
		return nil, nil
	}
	files, err := m.sideFiles("", hfrepo.IsSideFile)
	if err != nil {
		return nil, err
	}
	modules, err := m.modules()
	if err != nil {
		return nil, err
	}
	for _, folder := range modules {
		all, err := m.sideFiles(folder+"/", func(string) bool { return true })
		if err != nil {
			return nil, err
		}
		files = append(files, all...)
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Name < files[j].Name })
	return files, nil
}

// sideFiles lists the files of a folder; a folder that is not there has none.
func (m *Model) sideFiles(folder string, belongs func(name string) bool) ([]InputFile, error) {
	path := filepath.Join(m.Path, folder)
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) && folder != "" {
		return nil, nil
	}
	if err != nil {
		return nil, &InputError{path, err}
	}
	var files []InputFile
	for _, e := range entries {
		if !belongs(e.Name()) {
			continue
		}
		path := filepath.Join(path, e.Name())
		st, err := os.Stat(path)
		if err != nil {
			return nil, asInputError(path, err)
		}
		if strings.ContainsAny(e.Name(), `/\:`) || strings.ContainsFunc(e.Name(), unicode.IsControl) {
			return nil, inputErrorf(path, "a file of this name can't be copied to every system: rename or remove it")
		}
		if st.Mode().IsRegular() {
			files = append(files, InputFile{folder + e.Name(), path, st.Size()})
		}
	}
	return files, nil
}

// modulesName lists the modules of a folder of sentence-transformers.
const modulesName = "modules.json"

// modules returns the folders in the model's that modules.json names.
func (m *Model) modules() ([]string, error) {
	path := filepath.Join(m.Path, modulesName)
	data, err := readSmall(path, maxConfigSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, asInputError(path, err)
	}
	var folders []string
	list, err := strictjson.Parse(data)
	var items []strictjson.Value
	if err == nil {
		items, err = list.Items()
	}
	for i := 0; err == nil && i < len(items); i++ {
		var module *strictjson.Object
		var folder string
		if module, err = items[i].Object(); err == nil {
			folder, _, err = module.OptString("path")
		}
		if err == nil && folder != "" && (!filepath.IsLocal(folder) || strings.ContainsAny(folder, `/\:`)) {
			err = fmt.Errorf("module %d has the path %q, expected a folder beside this file", i, folder)
		}
		if err == nil && folder != "" && folder != "." && !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	if err != nil {
		return nil, &InputError{path, err}
	}
	return folders, nil
}

// SideFile reads a file of the folder; false if there is none. It may have so many bytes.
func (m *Model) SideFile(name string, limit int64) ([]byte, bool, error) {
	path := filepath.Join(m.Path, filepath.FromSlash(name))
	if m.sidecars != nil {
		i := slices.IndexFunc(m.sidecars, func(s Sidecar) bool { return s.Name == filepath.ToSlash(name) })
		if i < 0 {
			return nil, false, nil
		}
		if m.sidecars[i].Source == "" {
			return m.sidecars[i].Data, true, nil
		}
		path = m.sidecars[i].Source
	}
	data, err := readSmall(path, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, &InputError{path, err}
	}
	return data, true, nil
}

// Card returns the text of the model's README.md, empty without one.
func (m *Model) Card() string {
	if !m.IsFolder {
		return ""
	}
	data, _, err := m.SideFile(cardName, maxConfigSize)
	if err != nil {
		return ""
	}
	return string(data)
}

// Memory is a set of tensors made by the program itself.
type Memory struct {
	specs  []tensor.Spec
	values map[string][]byte
}

// Add adds a tensor; its data must have the size of its spec.
func (m *Memory) Add(spec tensor.Spec, data []byte) {
	if m.values == nil {
		m.values = make(map[string][]byte)
	}
	m.specs = append(m.specs, spec)
	m.values[spec.Name] = data
}

// Specs returns the tensors in the order they were added.
func (m *Memory) Specs() []tensor.Spec { return m.specs }

// Open returns the bytes of a tensor.
func (m *Memory) Open(name string) (io.ReaderAt, error) {
	data, ok := m.values[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %q in memory", name)
	}
	return readerAt(data), nil
}

// readerAt reads from a byte slice without the bounds state of bytes.Reader.
type readerAt []byte

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(r)) {
		return 0, io.EOF
	}
	n := copy(p, r[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
