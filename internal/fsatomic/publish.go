package fsatomic

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

const (
	// moveTries bounds how often a target that comes and goes is chased.
	moveTries = 16
	// removeTries makes up for a passing fault: what is not removed stays.
	removeTries = 2
)

// commit returns where the replaced output lies, "" if there was none.
func (o *Output) commit() (old string, err error) {
	if err := o.seal(); err != nil {
		return "", fmt.Errorf("committing output %q: %w", o.at.target, bare(err))
	}
	old, err = o.move()
	if err != nil {
		return "", err
	}
	if err := syncFolder(o.fsys, o.at.parent); err != nil {
		return "", o.retreat(old, fmt.Errorf("committing output %q: %w", o.at.target, err))
	}
	return old, nil
}

// seal makes the content of the partial durable.
func (o *Output) seal() error {
	if o.kind == KindFile && len(o.files) == 0 {
		return errors.New("no file was created")
	}
	for _, f := range o.files {
		if err := f.Close(); err != nil {
			return err
		}
	}
	if o.kind != KindDir {
		return nil
	}
	for _, folder := range append(o.folders, o.partial) {
		if err := syncFolder(o.fsys, folder); err != nil {
			return err
		}
	}
	return nil
}

// move gives the partial the target's name. The target is looked at again: the
// check of New may be hours old.
func (o *Output) move() (old string, err error) {
	for range moveTries {
		err = o.fsys.RenameNoReplace(o.partial, o.at.target)
		if err == nil {
			return "", nil
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
		if err := o.at.checkOccupant(o.fsys, o.kind, o.force); err != nil {
			return "", err
		}
		old, err = o.replace()
		if err == nil || o.oldAt != "" || !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("moving output %q into place: %w", o.at.target, bare(err))
	}
	return old, nil
}

// replace swaps the partial and the target, so that at no time a reader finds
// neither. Where swapping is not supported the old output steps aside first.
func (o *Output) replace() (old string, err error) {
	err = o.fsys.Exchange(o.partial, o.at.target)
	if err == nil {
		return o.partial, nil
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return o.replaceInTwoSteps()
	}
	// A network file system may have done what it reports as failed. Then the
	// partial's name holds the old output, which must not be removed.
	if !o.isAt(o.partial) {
		return "", o.keep(bare(err), o.partial)
	}
	return "", err
}

func (o *Output) replaceInTwoSteps() (old string, err error) {
	aside := o.at.target + oldMark + o.id
	if err := o.fsys.RenameNoReplace(o.at.target, aside); err != nil {
		return "", err
	}
	if err = o.fsys.RenameNoReplace(o.partial, o.at.target); err == nil {
		return aside, nil
	}
	err = bare(err)
	if errors.Is(err, fs.ErrExist) {
		err = &ExistsError{o.at.target} // another run was faster
	}
	if o.fsys.RenameNoReplace(aside, o.at.target) != nil {
		return "", o.keep(err, aside)
	}
	return "", err
}

// retreat undoes move after the failure of what had to follow, unless another
// run has replaced the output already.
func (o *Output) retreat(old string, failure error) error {
	if !o.isAt(o.at.target) {
		return o.keep(failure, old)
	}
	var err error
	if old == o.partial {
		err = o.fsys.Exchange(o.partial, o.at.target)
	} else {
		err = o.fsys.RenameNoReplace(o.at.target, o.partial)
		if err == nil && old != "" {
			err = o.fsys.RenameNoReplace(old, o.at.target)
		}
	}
	if err != nil {
		return o.keep(failure, old)
	}
	// The partial is removed next. Try to make sure that no loss of power
	// brings back the move but not the content. The output has failed anyway,
	// so that an error tells nothing new.
	_ = o.fsys.SyncDir(o.at.parent)
	return failure
}

// keep remembers and tells where the old output was left, "" if there was none.
func (o *Output) keep(failure error, old string) error {
	o.oldAt = old
	if old == "" {
		return fmt.Errorf("%w; the output is there, but may not survive a loss of power", failure)
	}
	return fmt.Errorf("%w; the previous output may be at %q", failure, old)
}

// isAt reports whether a name is that of the new output. If in doubt it is not.
func (o *Output) isAt(name string) bool {
	info, err := o.fsys.Lstat(name)
	return err == nil && sameFile(info, o.self)
}

// syncFolder makes the names in a folder durable. File systems that can not do
// that (some over networks) say so, and there is nothing better to be had.
func syncFolder(fsys FS, dir string) error {
	err := fsys.SyncDir(dir)
	if err == nil || isUnsupported(err) {
		return nil
	}
	return fmt.Errorf("syncing folder %q: %w", dir, bare(err))
}

func isUnsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL)
}

// outputDepth is how deep an output is: a folder, and the folders in it.
const outputDepth = 2

// removeOutput removes a file, a link, or a folder with folders of files. What lies
// deeper stays, and is an error. What is gone already is none.
func removeOutput(fsys FS, name string) error {
	var err error
	for range removeTries {
		if err = removeOnce(fsys, name, outputDepth); err == nil {
			return nil
		}
	}
	return err
}

func removeOnce(fsys FS, name string, depth int) error {
	info, err := fsys.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() && depth > 0 {
		entries, err := fsys.ReadDir(name)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := removeOnce(fsys, name+string(os.PathSeparator)+entry.Name(), depth-1); err != nil {
				return err
			}
		}
	}
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
