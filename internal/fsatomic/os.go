package fsatomic

import (
	"errors"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"path/filepath"
)

// OS is the file system of the machine.
type OS struct {
	// Direct writes past the page cache where the system and the file system can
	// (Linux: O_DIRECT), and takes room on the disk for a file as soon as its size
	// is known: less work for the processor and no other file driven out of the
	// cache, but no holes for zeros, and a file that is not in the cache afterwards.
	Direct bool
}

var _ FS = OS{}

// Create opens a new file with the mode that the umask leaves of 0666.
func (o OS) Create(name string) (File, error) {
	return o.open(name, os.O_CREATE|os.O_EXCL)
}

// Open opens an existing file.
func (o OS) Open(name string) (File, error) {
	info, err := os.Lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, err
	}
	return o.open(name, 0)
}

func (o OS) open(name string, how int) (File, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|noFollow|how, 0o666)
	if err != nil {
		return nil, err
	}
	if o.Direct {
		return &diskFile{File: f, past: openPast(f)}, nil
	}
	return &diskFile{File: f}, nil
}

// ReadFile returns the content of a file.
func (OS) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

// Mkdir makes a new folder with the mode that the umask leaves of 0777.
func (OS) Mkdir(name string) error { return os.Mkdir(name, 0o777) }

// RenameNoReplace moves a name in one step where the system can do that. Else
// two steps leave a gap in which another process may take the name: a file is
// then linked, which is safe, and for what can not be linked the name is
// looked up first. A folder never replaces one that has something in it.
func (OS) RenameNoReplace(from, to string) error { return renameNoReplace(from, to) }

// Exchange swaps two names on Linux and macOS, on file systems that can.
func (OS) Exchange(a, b string) error { return exchange(a, b) }

// Remove removes a file, a link or an empty folder.
func (OS) Remove(name string) error { return os.Remove(name) }

// Lstat describes a name.
func (OS) Lstat(name string) (fs.FileInfo, error) { return os.Lstat(name) }

// Stat describes what a name leads to.
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// ReadDir lists a folder by name.
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// SyncDir makes the names in a folder durable. Windows has no such call.
func (OS) SyncDir(name string) error { return syncDir(name) }

// Free returns the bytes free for this user, quotas aside.
func (OS) Free(dir string) (int64, error) {
	free, err := freeBytes(dir)
	if err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return free, nil
}

// Resolve follows the links of a path, then those of the working folder, which
// the shell may have reached through one.
func (OS) Resolve(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// product multiplies blocks by bytes per block, up to the largest int64: a file
// system that claims more has room for anything.
func product(blocks, blockBytes uint64) int64 {
	hi, lo := bits.Mul64(blocks, blockBytes)
	if hi != 0 || lo > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(lo)
}
