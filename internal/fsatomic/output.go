package fsatomic

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// createTries bounds the search for a free random name. One try is enough
// unless something answers every name with "exists".
const createTries = 8

// Output is one file or one folder in the making. Its methods are not safe for
// concurrent use; the files it hands out are.
type Output struct {
	fsys    FS
	at      location
	kind    Kind
	force   bool
	id      string // 8 hexadecimal digits; in names beside the target only
	partial string
	self    fs.FileInfo // the partial itself, whatever its name
	single  File        // of KindFile, until Create hands it out
	files   []*file
	folders []string // paths of folders in the partial
	journal *journal // nil without
	resumed bool     // the partial is that of an earlier run

	failure error  // the first failure of Create or Commit
	oldAt   string // where the old output may be if it could not be moved back
	done    bool   // committed, or nothing left to remove
}

// New starts an output. It checks all that can be checked before the heavy
// work, as [Check] does, and creates the partial, so that a parent folder that
// can not be written to or synced shows now. Every Output needs a Commit or an
// Abort.
//
// A target that exists is an [*ExistsError] unless force is set. Force replaces
// a file, a link (never what it leads to), or a folder that looks like a model
// or an adapter; anything else is a [*RefusedError].
func New(fsys FS, target string, kind Kind, force bool) (*Output, error) {
	if err := Check(fsys, target, kind, force); err != nil {
		return nil, err
	}
	at, err := locate(target)
	if err != nil {
		return nil, err
	}
	o := &Output{fsys: fsys, at: at, kind: kind, force: force}
	if err := o.createPartial(); err != nil {
		return nil, fmt.Errorf("creating output %q: %w", target, bare(err))
	}
	o.self, err = fsys.Lstat(o.partial)
	if err == nil {
		err = syncFolder(fsys, at.parent)
	}
	if err != nil {
		return nil, fmt.Errorf("creating output %q: %w", target, o.giveUp(bare(err)))
	}
	return o, nil
}

func (o *Output) createPartial() error {
	for try := 1; ; try++ {
		var random [4]byte
		_, _ = rand.Read(random[:]) // never fails
		o.id = hex.EncodeToString(random[:])
		o.partial = o.at.target + partialMark + o.id
		var err error
		if o.kind == KindDir {
			err = o.fsys.Mkdir(o.partial)
		} else {
			o.single, err = o.fsys.Create(o.partial)
		}
		if try == createTries || !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}

// Target returns the path that Commit will create.
func (o *Output) Target() string { return o.at.target }

// Partial returns the path of the file or folder in the making, for reading
// back what was written. After Commit or Abort it is gone.
func (o *Output) Partial() string { return o.partial }

// CheckSpace returns a [*SpaceError] if fewer than need bytes are free on the
// target's disk. A disk that does not tell passes.
func (o *Output) CheckSpace(need int64) error {
	free, err := o.fsys.Free(o.at.parent)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("checking free space for output %q: %w", o.at.target, bare(err))
	}
	if need > free {
		return &SpaceError{Path: o.at.target, Need: need, Free: free}
	}
	return nil
}

// Create makes a file of the output with its final size. The name is a plain
// one, or one in a folder of the output, "folder/name"; for KindFile, which has
// one file, it is "".
//
// The file is all zeros until written, and takes no room on most disks until
// then. Writes outside its size fail. Closing it syncs it, so that a writer of
// many files can close the finished ones; Commit does the rest. The first
// failure of any call is remembered, and Commit returns it.
func (o *Output) Create(name string, sizeBytes int64) (File, error) {
	if o.failure != nil {
		return nil, o.failure
	}
	if o.done {
		return nil, fmt.Errorf("creating file %q of output %q: %w", name, o.at.target, fs.ErrClosed)
	}
	f, err := o.create(name, sizeBytes)
	if err != nil {
		o.failure = fmt.Errorf("creating file %q of output %q: %w", name, o.at.target, bare(err))
		return nil, o.failure
	}
	return f, nil
}

func (o *Output) create(name string, sizeBytes int64) (*file, error) {
	if sizeBytes < 0 {
		return nil, fmt.Errorf("negative size %d", sizeBytes)
	}
	under, label := o.single, filepath.Base(o.at.target)
	if o.kind == KindDir {
		path, err := o.place(name)
		if err != nil {
			return nil, err
		}
		under, err = o.fsys.Create(path)
		if o.resumed && errors.Is(err, fs.ErrExist) {
			under, err = o.fsys.Open(path)
		}
		if err != nil {
			return nil, err
		}
		label = name
	} else if name != "" || under == nil {
		return nil, errors.New("the output is one file, without a name of its own")
	}
	o.single = nil
	f := &file{under: under, name: label}
	o.files = append(o.files, f)
	if sizeBytes == 0 {
		return f, nil
	}
	return f, f.Truncate(sizeBytes)
}

// place returns the path of a file of the output, and makes the folder that it is in.
func (o *Output) place(name string) (string, error) {
	folder, file, nested := strings.Cut(name, "/")
	if !isPlainName(folder) || nested && !isPlainName(file) {
		return "", errors.New("not a plain file name")
	}
	path := o.partial + string(os.PathSeparator) + folder
	if !nested {
		return path, nil
	}
	if !slices.Contains(o.folders, path) {
		if err := o.fsys.Mkdir(path); err != nil && !(o.resumed && errors.Is(err, fs.ErrExist)) {
			return "", err
		}
		o.folders = append(o.folders, path)
	}
	return path + string(os.PathSeparator) + file, nil
}

// isPlainName reports whether a name, which may come from an input, stays in
// its folder on every system and can be printed.
func isPlainName(name string) bool {
	return name != "." && filepath.IsLocal(name) && !strings.ContainsAny(name, `/\:`) &&
		!strings.ContainsFunc(name, unicode.IsControl)
}

// Commit makes the output appear. It syncs and closes every file, syncs the
// folder, moves it onto the target and syncs the parent folder.
//
// On failure the partial is removed and the old target is intact; if another
// run created the target meanwhile, the error is an [*ExistsError]. With force
// the replaced output is removed last; if only that fails the output is
// committed and the error is a [*CleanupError].
//
// Should the disk refuse even to move the old target back, nothing is removed
// and the error says where the old one is. A failed sync is never repeated.
func (o *Output) Commit() error { return CommitAll(o) }

// CommitAll makes several outputs appear, in their order, or none of them: when one
// fails those before it are moved back. What [Output.Commit] says of one output holds
// for each. Only a crash between two moves leaves the earlier outputs alone, so that
// one that is of use by itself comes last.
func CommitAll(outputs ...*Output) error {
	for _, o := range outputs {
		if o.done && o.failure == nil {
			return fmt.Errorf("committing output %q: %w", o.at.target, fs.ErrClosed)
		}
	}
	olds := make([]string, len(outputs))
	for i, o := range outputs {
		err := o.failure
		if err == nil {
			olds[i], err = o.commit()
		}
		if err == nil {
			continue
		}
		err = o.giveUp(err)
		for j := i - 1; j >= 0; j-- {
			err = outputs[j].giveUp(outputs[j].retreat(olds[j], err))
		}
		for _, later := range outputs[i+1:] {
			err = later.giveUp(err)
		}
		return err
	}
	var err error
	for i, o := range outputs {
		if left := o.clean(olds[i]); left != nil && err == nil {
			err = left
		}
	}
	return err
}

// clean removes what a commit leaves behind.
func (o *Output) clean(old string) error {
	o.done = true
	// A journal that stays is named by the next run.
	o.journal.close()
	_ = o.journal.remove(o.fsys)
	if old == "" {
		return nil
	}
	if err := removeOutput(o.fsys, old); err != nil {
		return &CleanupError{Target: o.at.target, Path: old, Err: bare(err)}
	}
	return nil
}

// Abort removes the partial. It does nothing after a Commit and after an Abort
// that succeeded.
func (o *Output) Abort() error {
	if o.done {
		return nil
	}
	if o.failure == nil {
		o.failure = fmt.Errorf("committing output %q: %w", o.at.target, fs.ErrClosed)
	}
	if err := o.removePartial(); err != nil {
		return fmt.Errorf("removing partial output %q: %w", o.partial, bare(err))
	}
	return nil
}

// giveUp removes the partial after a failure, which it returns.
func (o *Output) giveUp(failure error) error {
	o.failure = failure
	if o.done {
		return failure
	}
	if err := o.removePartial(); err != nil {
		return fmt.Errorf("%w; removing partial output %q: %w", failure, o.partial, bare(err))
	}
	return failure
}

func (o *Output) removePartial() error {
	for _, f := range o.files {
		f.drop()
	}
	o.journal.close()
	if o.single != nil {
		_ = o.single.Close() // nothing was written to it
		o.single = nil
	}
	if o.oldAt != o.partial {
		if err := removeOutput(o.fsys, o.partial); err != nil {
			return err
		}
	}
	if err := o.journal.remove(o.fsys); err != nil {
		return err
	}
	o.done = true
	return nil
}
