package faultfs

import (
	"errors"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/loratool/loratool/internal/fsatomic"
)

// Mem is a file system in memory. It keeps what callers see apart from what is
// durable: the content of a file is durable after File.Sync, the names in a
// folder after SyncDir. It has no links, and its files take the room that they
// would take on a disk without holes. Relative paths start at the root.
type Mem struct {
	mu      sync.Mutex
	root    *node
	pending []change // changes of names, oldest first, that no SyncDir reached
	free    int64
}

// node is a file or a folder, whatever names it has.
type node struct {
	isDir bool

	entries, keptEntries map[string]*node // of a folder: seen, durable
	data, keptData       []byte           // of a file: seen, durable
}

// change is what one call did to names. A crash keeps all of it or nothing, as
// a file system with a journal does.
type change []naming

// naming gives a name in a folder to a node, or to none.
type naming struct {
	dir  *node
	name string
	node *node
}

var _ fsatomic.FS = (*Mem)(nil)

// NewMem returns an empty file system with 1 TiB free.
func NewMem() *Mem {
	return &Mem{root: newDir(), free: 1 << 40}
}

// SetFree sets what Free answers. Writes do not count against it.
func (m *Mem) SetFree(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free = bytes
}

// WriteFile makes or changes a file, without a sync.
func (m *Mem) WriteFile(name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.find("write", name)
	if err != nil {
		return err
	}
	n := dir.entries[base]
	if n == nil {
		n = &node{}
		m.apply(change{{dir, base, n}})
	}
	if n.isDir {
		return pathError("write", name, syscall.EISDIR)
	}
	n.data = slices.Clone(data)
	return nil
}

// ReadFile returns the content of a file as callers see it.
func (m *Mem) ReadFile(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup("read", name)
	if err != nil {
		return nil, err
	}
	if n.isDir {
		return nil, pathError("read", name, syscall.EISDIR)
	}
	return slices.Clone(n.data), nil
}

// Create makes a file.
func (m *Mem) Create(name string) (fsatomic.File, error) {
	n := &node{}
	if err := m.add("create", name, n); err != nil {
		return nil, err
	}
	return &memFile{mem: m, name: name, node: n}, nil
}

// Open opens a file that exists.
func (m *Mem) Open(name string) (fsatomic.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup("open", name)
	if err != nil {
		return nil, err
	}
	if n.isDir {
		return nil, pathError("open", name, syscall.EISDIR)
	}
	return &memFile{mem: m, name: name, node: n}, nil
}

// Mkdir makes a folder.
func (m *Mem) Mkdir(name string) error { return m.add("mkdir", name, newDir()) }

func (m *Mem) add(op, name string, n *node) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.find(op, name)
	if err != nil {
		return err
	}
	if dir.entries[base] != nil {
		return pathError(op, name, syscall.EEXIST)
	}
	m.apply(change{{dir, base, n}})
	return nil
}

// RenameNoReplace moves a name.
func (m *Mem) RenameNoReplace(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	fromDir, fromBase, toDir, toBase, err := m.findBoth("rename", from, to)
	if err != nil {
		return err
	}
	if toDir.entries[toBase] != nil {
		return pathError("rename", to, syscall.EEXIST)
	}
	m.apply(change{{toDir, toBase, fromDir.entries[fromBase]}, {fromDir, fromBase, nil}})
	return nil
}

// Exchange swaps two names.
func (m *Mem) Exchange(a, b string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	aDir, aBase, bDir, bBase, err := m.findBoth("exchange", a, b)
	if err != nil {
		return err
	}
	if bDir.entries[bBase] == nil {
		return pathError("exchange", b, syscall.ENOENT)
	}
	m.apply(change{{aDir, aBase, bDir.entries[bBase]}, {bDir, bBase, aDir.entries[aBase]}})
	return nil
}

// Remove removes a file or an empty folder.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup("remove", name)
	if err != nil {
		return err
	}
	if len(n.entries) > 0 {
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	dir, base, err := m.find("remove", name)
	if err != nil {
		return err
	}
	m.apply(change{{dir, base, nil}})
	return nil
}

// Lstat describes a name.
func (m *Mem) Lstat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup("lstat", name)
	if err != nil {
		return nil, err
	}
	return infoOf(path.Base(clean(name)), n), nil
}

// Stat is Lstat: there are no links.
func (m *Mem) Stat(name string) (fs.FileInfo, error) { return m.Lstat(name) }

// ReadDir lists a folder by name.
func (m *Mem) ReadDir(name string) ([]fs.DirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.isDir {
		return nil, pathError("readdir", name, syscall.ENOTDIR)
	}
	entries := make([]fs.DirEntry, 0, len(n.entries))
	for _, base := range slices.Sorted(maps.Keys(n.entries)) {
		entries = append(entries, fs.FileInfoToDirEntry(infoOf(base, n.entries[base])))
	}
	return entries, nil
}

// SyncDir makes the names in a folder durable, and with them the other half of
// moves to and from other folders.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, err := m.lookup("syncdir", name)
	if err != nil {
		return err
	}
	if !dir.isDir {
		return pathError("syncdir", name, syscall.ENOTDIR)
	}
	var rest []change
	for _, c := range m.pending {
		if !slices.ContainsFunc(c, func(n naming) bool { return n.dir == dir }) {
			rest = append(rest, c)
			continue
		}
		for _, n := range c {
			set(n.dir.keptEntries, n)
		}
	}
	m.pending = rest
	return nil
}

// Free returns what SetFree set.
func (m *Mem) Free(string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free, nil
}

// Resolve cleans the path of something that exists.
func (m *Mem) Resolve(name string) (string, error) {
	if _, err := m.Lstat(name); err != nil {
		return "", err
	}
	return clean(name), nil
}

func (m *Mem) apply(c change) {
	for _, n := range c {
		set(n.dir.entries, n)
	}
	m.pending = append(m.pending, c)
}

func set(entries map[string]*node, n naming) {
	if n.node == nil {
		delete(entries, n.name)
		return
	}
	entries[n.name] = n.node
}

// lookup returns what has a name.
func (m *Mem) lookup(op, name string) (*node, error) {
	if clean(name) == "/" {
		return m.root, nil
	}
	dir, base, err := m.find(op, name)
	if err != nil {
		return nil, err
	}
	if dir.entries[base] == nil {
		return nil, pathError(op, name, syscall.ENOENT)
	}
	return dir.entries[base], nil
}

// find returns the folder that has a name or could have it.
func (m *Mem) find(op, name string) (dir *node, base string, err error) {
	parent, base := path.Split(clean(name))
	if base == "" {
		return nil, "", pathError(op, name, syscall.EINVAL)
	}
	dir, err = m.lookup(op, parent)
	if err == nil && !dir.isDir {
		err = pathError(op, name, syscall.ENOTDIR)
	}
	return dir, base, err
}

// findBoth is find for two names, of which the first exists.
func (m *Mem) findBoth(op, from, to string) (fromDir *node, fromBase string, toDir *node, toBase string, err error) {
	if fromDir, fromBase, err = m.find(op, from); err != nil {
		return nil, "", nil, "", err
	}
	if fromDir.entries[fromBase] == nil {
		return nil, "", nil, "", pathError(op, from, syscall.ENOENT)
	}
	toDir, toBase, err = m.find(op, to)
	return fromDir, fromBase, toDir, toBase, err
}

func clean(name string) string { return path.Clean("/" + filepath.ToSlash(name)) }

func newDir() *node {
	return &node{isDir: true, entries: map[string]*node{}, keptEntries: map[string]*node{}}
}

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// memFile is an open file.
type memFile struct {
	mem    *Mem
	name   string
	node   *node
	closed bool
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathError("write", f.name, errors.New("negative offset"))
	}
	return len(p), f.locked("write", func() {
		if end := off + int64(len(p)); end > int64(len(f.node.data)) {
			f.node.resize(end)
		}
		copy(f.node.data[off:], p)
	})
}

func (f *memFile) Truncate(size int64) error {
	return f.locked("truncate", func() { f.node.resize(size) })
}

func (f *memFile) Sync() error {
	return f.locked("sync", func() { f.node.keptData = slices.Clone(f.node.data) })
}

func (f *memFile) Close() error {
	return f.locked("close", func() { f.closed = true })
}

func (f *memFile) locked(op string, call func()) error {
	f.mem.mu.Lock()
	defer f.mem.mu.Unlock()
	if f.closed {
		return pathError(op, f.name, fs.ErrClosed)
	}
	call()
	return nil
}

func (n *node) resize(size int64) {
	data := make([]byte, size)
	copy(data, n.data)
	n.data = data
}

// info describes a node.
type info struct {
	name string
	node *node
	size int64
}

func infoOf(name string, n *node) fs.FileInfo {
	return info{name: name, node: n, size: int64(len(n.data))}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.node.isDir }

func (i info) Mode() fs.FileMode {
	if i.node.isDir {
		return fs.ModeDir | 0o777
	}
	return 0o666
}

// Sys returns a pointer that is the same for all names of one file.
func (i info) Sys() any { return i.node }
