// Package fsatomic makes outputs that appear whole or not at all.
//
// An [Output] is one file or one folder in the making. [New] creates a partial
// beside the target, [Output.Create] hands out its files, and [Output.Commit]
// syncs every byte, moves the partial onto the target in one step and syncs the
// parent folder. Until Commit has returned nil the target is what it was
// before; after that it is the complete output, also after a loss of power.
//
// Every byte that loratool writes goes through an [FS]. [OS] is the real one;
// package faultfs has one that fails on demand and one that forgets what was
// not synced.
//
// The package refuses to overwrite: an existing target needs force, a folder
// that does not look like a model is kept even then, and [CheckInputs] finds
// outputs that would destroy an input. Names are opened exclusively and links
// are never written through. It trusts the parent folder: whoever may rename
// things in there can exchange the partial.
package fsatomic

import (
	"io"
	"io/fs"
)

// FS is all that loratool ever does to a disk when it writes. It has no rename
// that replaces and no recursive removal, so that no mistake made above it can
// destroy a file that was not named.
//
// Errors match fs.ErrExist and fs.ErrNotExist where they apply. Implementations
// are safe for concurrent use.
type FS interface {
	// Create makes a new file, open for writing. A name that is taken, be it
	// by a link that leads nowhere, is an fs.ErrExist.
	Create(name string) (File, error)
	// Open opens an existing regular file for writing, with what is in it; a link
	// is not followed.
	Open(name string) (File, error)
	// ReadFile returns the content of a file.
	ReadFile(name string) ([]byte, error)
	// Mkdir makes a new folder.
	Mkdir(name string) error
	// RenameNoReplace moves a file or a folder to a name that is free. A name
	// that is taken is an fs.ErrExist and changes nothing.
	RenameNoReplace(from, to string) error
	// Exchange swaps two existing names of any type in one step. It returns
	// errors.ErrUnsupported where that can not be done.
	Exchange(a, b string) error
	// Remove removes a file, a link or an empty folder.
	Remove(name string) error
	// Lstat describes a name, Stat what the name leads to.
	Lstat(name string) (fs.FileInfo, error)
	Stat(name string) (fs.FileInfo, error)
	// ReadDir lists a folder by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// SyncDir makes the names in a folder durable, not what they name.
	SyncDir(name string) error
	// Free returns the bytes that the caller may still write in a folder. It
	// returns errors.ErrUnsupported where that is not known.
	Free(dir string) (int64, error)
	// Resolve returns the absolute path without links that a path leads to.
	Resolve(path string) (string, error)
}

// File is a file being written. WriteAt is safe for concurrent use.
type File interface {
	io.WriterAt
	// Truncate sets the size; bytes never written read as zeros.
	Truncate(size int64) error
	// Sync makes the content durable. After it failed once the content is
	// lost: some systems report success the second time.
	Sync() error
	Close() error
}

// Kind says what an output is.
type Kind uint8

// The kinds of output.
const (
	KindFile Kind = iota // one file
	KindDir              // one folder of files, without sub-folders
)
