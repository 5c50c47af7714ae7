// Package workfolder keeps what a long computation has found so far in a folder beside
// its output: memory stays bounded, and a run that was killed leaves a folder that
// another one can go on from.
//
// A file appears whole or not at all. The folder is named like any partial output, so
// that a later run recognises it. The files carry a key of everything that they depend
// on; what has another key is another computation's.
package workfolder

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/saferead"
)

// Folder is an open work folder.
type Folder struct {
	fsys    fsatomic.FS
	dir     string
	prefix  string // of the name of every file
	resumed bool
}

// keyPrefix is how much of the key stands in the name of every file.
const keyPrefix = 16

// Open makes a work folder beside an output. With resume it takes over the folder that
// an earlier run with the same key, at least 16 hexadecimal digits, has left, if there
// is one; Resumed tells.
func Open(fsys fsatomic.FS, output, key string, resume bool) (*Folder, error) {
	f := &Folder{fsys: fsys, prefix: key[:keyPrefix] + "-"}
	if resume {
		if err := f.find(output); err != nil {
			return nil, err
		}
	}
	if f.dir != "" {
		f.resumed = true
		return f, nil
	}
	for {
		f.dir = Name(output)
		if err := fsys.Mkdir(f.dir); !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
}

// Name is a new name beside an output, as fsatomic names partial outputs.
func Name(output string) string {
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails
	return strings.TrimRight(output, string(os.PathSeparator)) + ".partial-" + hex.EncodeToString(random[:])
}

// find looks for the folder of an earlier run.
func (f *Folder) find(output string) error {
	folders, err := fsatomic.Leftovers(f.fsys, output)
	if err != nil {
		return err
	}
	for _, dir := range folders {
		entries, err := f.fsys.ReadDir(dir)
		if err != nil {
			continue // a file, or gone by now
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), f.prefix) && !strings.Contains(e.Name(), ".partial-") {
				f.dir = dir
				return nil
			}
		}
	}
	return nil
}

// Dir returns the path of the folder.
func (f *Folder) Dir() string { return f.dir }

// Resumed reports whether the folder is that of an earlier run.
func (f *Folder) Resumed() bool { return f.resumed }

func (f *Folder) path(name string) string { return filepath.Join(f.dir, f.prefix+name) }

// Write makes a file of the folder, which then is there whole. One that is there
// already was found to be broken.
func (f *Folder) Write(name string, data []byte) error {
	out, err := fsatomic.New(f.fsys, f.path(name), fsatomic.KindFile, true)
	if err != nil {
		return err
	}
	file, err := out.Create("", int64(len(data)))
	if err == nil {
		_, err = file.WriteAt(data, 0)
	}
	if err != nil {
		return errors.Join(err, out.Abort())
	}
	return out.Commit()
}

// Read returns a file of the folder. Its content is to be checked like any input.
func (f *Folder) Read(name string) ([]byte, error) {
	file, size, err := saferead.OpenRegular(f.path(name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return saferead.New(file, size).Bytes(0, size)
}

// Close removes the folder with all that is in it.
func (f *Folder) Close() error {
	if f == nil {
		return nil
	}
	return Remove(f.fsys, f.dir)
}

// Remove removes a folder and the files in it, if it is there.
func Remove(fsys fsatomic.FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		for _, e := range entries {
			if rerr := fsys.Remove(filepath.Join(dir, e.Name())); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = rerr
			}
		}
	}
	if err == nil {
		err = fsys.Remove(dir)
	}
	if err != nil {
		return fmt.Errorf("removing work folder %q: %w", dir, err)
	}
	return nil
}
