// Package faultfs has file systems for tests that break on demand.
//
// An [FS] passes calls on to another file system, counts them, and fails those
// that its injectors pick: run a scenario with [FailAt] for k = 1, 2, ... until
// no fault fires, and look at what is left after each. A [Mem] lives in memory
// and knows what was synced: [Mem.Crash] gives what a loss of power leaves.
package faultfs

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/loratool/loratool/internal/fsatomic"
)

// Op names a call of [fsatomic.FS] or [fsatomic.File].
type Op string

// The calls.
const (
	OpCreate   Op = "create"
	OpOpen     Op = "open"
	OpRead     Op = "read"
	OpMkdir    Op = "mkdir"
	OpRename   Op = "rename"
	OpExchange Op = "exchange"
	OpRemove   Op = "remove"
	OpLstat    Op = "lstat"
	OpStat     Op = "stat"
	OpReadDir  Op = "readdir"
	OpSyncDir  Op = "syncdir"
	OpFree     Op = "free"
	OpResolve  Op = "resolve"
	OpWrite    Op = "write"
	OpTruncate Op = "truncate"
	OpSync     Op = "sync"
	OpClose    Op = "close"
)

// Call is one call about to be made.
type Call struct {
	N    int // counts from 1
	Op   Op
	Path string // the first name the call is about
}

// Injector returns the error that a call fails with, nil to let it pass. It may
// do other things too, such as crash a [Mem]. It must be safe for concurrent
// use if the file system is used so.
type Injector func(Call) error

// FailAt fails call k only.
func FailAt(k int, err error) Injector {
	return func(call Call) error {
		if call.N == k {
			return err
		}
		return nil
	}
}

// FailFrom fails call k and all after it, as a disk does that went away.
func FailFrom(k int, err error) Injector {
	return func(call Call) error {
		if call.N >= k {
			return err
		}
		return nil
	}
}

// FailOp fails every call of one kind, as a file system does that lacks it.
func FailOp(op Op, err error) Injector {
	return func(call Call) error {
		if call.Op == op {
			return err
		}
		return nil
	}
}

// Late makes a fault of an error that is reported although the call was
// carried out, as happens when a network loses the answer.
func Late(err error) error { return &lateError{err} }

type lateError struct{ err error }

func (e *lateError) Error() string { return e.err.Error() }

func (e *lateError) Unwrap() error { return e.err }

// FS is a file system with injected faults.
type FS struct {
	under   fsatomic.FS
	injects []Injector

	mu     sync.Mutex
	calls  int
	faults []Call
	open   int
}

var _ fsatomic.FS = (*FS)(nil)

// New wraps a file system. For each call the first injector that returns an
// error decides.
func New(under fsatomic.FS, injects ...Injector) *FS {
	return &FS{under: under, injects: injects}
}

// Calls returns how many calls were made.
func (f *FS) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Faults returns the calls that were made to fail.
func (f *FS) Faults() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Call(nil), f.faults...)
}

// OpenFiles returns how many files were opened and not closed.
func (f *FS) OpenFiles() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open
}

// Create is a call that may fail.
func (f *FS) Create(name string) (fsatomic.File, error) {
	return f.openWith(OpCreate, name, f.under.Create)
}

// Open is a call that may fail.
func (f *FS) Open(name string) (fsatomic.File, error) {
	return f.openWith(OpOpen, name, f.under.Open)
}

func (f *FS) openWith(op Op, name string, open func(string) (fsatomic.File, error)) (fsatomic.File, error) {
	var opened fsatomic.File
	err := f.do(op, name, func() (err error) {
		opened, err = open(name)
		return err
	})
	if err != nil {
		if opened != nil { // the fault came late
			_ = opened.Close()
		}
		return nil, err
	}
	f.countOpen(1)
	return &file{fsys: f, name: name, under: opened}, nil
}

// ReadFile is a call that may fail.
func (f *FS) ReadFile(name string) (data []byte, err error) {
	err = f.do(OpRead, name, func() (err error) {
		data, err = f.under.ReadFile(name)
		return err
	})
	return data, err
}

// Mkdir is a call that may fail.
func (f *FS) Mkdir(name string) error {
	return f.do(OpMkdir, name, func() error { return f.under.Mkdir(name) })
}

// RenameNoReplace is a call that may fail.
func (f *FS) RenameNoReplace(from, to string) error {
	return f.do(OpRename, from, func() error { return f.under.RenameNoReplace(from, to) })
}

// Exchange is a call that may fail.
func (f *FS) Exchange(a, b string) error {
	return f.do(OpExchange, a, func() error { return f.under.Exchange(a, b) })
}

// Remove is a call that may fail.
func (f *FS) Remove(name string) error {
	return f.do(OpRemove, name, func() error { return f.under.Remove(name) })
}

// Lstat is a call that may fail.
func (f *FS) Lstat(name string) (info fs.FileInfo, err error) {
	err = f.do(OpLstat, name, func() (err error) {
		info, err = f.under.Lstat(name)
		return err
	})
	return info, err
}

// Stat is a call that may fail.
func (f *FS) Stat(name string) (info fs.FileInfo, err error) {
	err = f.do(OpStat, name, func() (err error) {
		info, err = f.under.Stat(name)
		return err
	})
	return info, err
}

// ReadDir is a call that may fail.
func (f *FS) ReadDir(name string) (entries []fs.DirEntry, err error) {
	err = f.do(OpReadDir, name, func() (err error) {
		entries, err = f.under.ReadDir(name)
		return err
	})
	return entries, err
}

// SyncDir is a call that may fail.
func (f *FS) SyncDir(name string) error {
	return f.do(OpSyncDir, name, func() error { return f.under.SyncDir(name) })
}

// Free is a call that may fail.
func (f *FS) Free(dir string) (free int64, err error) {
	err = f.do(OpFree, dir, func() (err error) {
		free, err = f.under.Free(dir)
		return err
	})
	return free, err
}

// Resolve is a call that may fail.
func (f *FS) Resolve(path string) (resolved string, err error) {
	err = f.do(OpResolve, path, func() (err error) {
		resolved, err = f.under.Resolve(path)
		return err
	})
	return resolved, err
}

// do counts a call, and makes it unless a fault says otherwise.
func (f *FS) do(op Op, path string, call func() error) error {
	fault := f.fault(op, path)
	if late := (*lateError)(nil); fault == nil || errors.As(fault, &late) {
		if err := call(); err != nil {
			return err
		}
	}
	return fault
}

func (f *FS) fault(op Op, path string) error {
	f.mu.Lock()
	f.calls++
	call := Call{N: f.calls, Op: op, Path: filepath.ToSlash(path)}
	f.mu.Unlock()
	// Not under the lock: an injector may look at the file system.
	for _, inject := range f.injects {
		if err := inject(call); err != nil {
			f.mu.Lock()
			f.faults = append(f.faults, call)
			f.mu.Unlock()
			return &fs.PathError{Op: string(op), Path: path, Err: err}
		}
	}
	return nil
}

func (f *FS) countOpen(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open += n
}

// file is an open file with injected faults.
type file struct {
	fsys  *FS
	name  string
	under fsatomic.File
	once  sync.Once // for the first Close
}

// WriteAt writes the first half when it fails, as a full disk does.
func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.fsys.do(OpWrite, f.name, func() (err error) {
		n, err = f.under.WriteAt(p, off)
		return err
	})
	if err != nil && n == 0 {
		n, _ = f.under.WriteAt(p[:len(p)/2], off)
	}
	return n, err
}

func (f *file) Truncate(size int64) error {
	return f.fsys.do(OpTruncate, f.name, func() error { return f.under.Truncate(size) })
}

func (f *file) Sync() error {
	return f.fsys.do(OpSync, f.name, f.under.Sync)
}

// Close closes the file also when it fails, as close(2) does.
func (f *file) Close() error {
	fault := f.fsys.fault(OpClose, f.name)
	f.once.Do(func() { f.fsys.countOpen(-1) })
	if err := f.under.Close(); err != nil {
		return err
	}
	return fault
}
