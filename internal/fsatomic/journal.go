package fsatomic

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// journalMark follows the name of a partial in the name of its journal.
const journalMark = ".journal"

// journal is a file beside a partial, which says what of the partial is there to
// stay: lines, the first of them the key of the work. A line is written when
// what it speaks of has been synced, so that it holds after a loss of power too.
type journal struct {
	file File
	path string
	size int64
}

// BusyError says that another run is at work on a partial.
type BusyError struct{ Path string }

func (e *BusyError) Error() string { return fmt.Sprintf("another run is writing %q", e.Path) }

// locker is a [File] that can be locked against other processes, for as long as
// it is open. TryLock returns a [*BusyError] if another process has the lock.
type locker interface{ TryLock() error }

// StartJournal begins to record under a key, which has no line break: a later
// run finds the partial by it with [Resume].
func (o *Output) StartJournal(key string) error {
	if o.failure != nil {
		return o.failure
	}
	j := &journal{path: o.partial + journalMark}
	var err error
	if j.file, err = o.fsys.Create(j.path); err != nil {
		return fmt.Errorf("creating the journal of output %q: %w", o.at.target, bare(err))
	}
	o.journal = j
	if err := lock(j.file); err != nil {
		return err
	}
	return o.append([]string{key})
}

// Record makes everything written before the call durable, and then the lines,
// which have no line breaks. Files may be written to meanwhile.
func (o *Output) Record(lines []string) error {
	if o.journal == nil {
		return nil
	}
	for _, f := range o.files {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return o.append(lines)
}

func (o *Output) append(lines []string) error {
	data := []byte(strings.Join(lines, "\n") + "\n")
	_, err := o.journal.file.WriteAt(data, o.journal.size)
	if err == nil {
		err = o.journal.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("writing the journal of output %q: %w", o.at.target, bare(err))
	}
	o.journal.size += int64(len(data))
	return nil
}

// close ends the lock; every line was synced.
func (j *journal) close() {
	if j != nil {
		_ = j.file.Close()
	}
}

// remove removes a closed journal.
func (j *journal) remove(fsys FS) error {
	if j == nil {
		return nil
	}
	return removeOutput(fsys, j.path)
}

// Resume takes up the partial that an interrupted run has left for a target, if
// its journal has the key. It returns the lines that were recorded; the files of
// the output are to be created as in a new one, and those that are there already
// keep what is in them. Without such a partial the Output is nil.
//
// A partial that another run is at work on is a [*BusyError].
func Resume(fsys FS, target string, kind Kind, force bool, key string) (*Output, []string, error) {
	if err := Check(fsys, target, kind, force); err != nil {
		return nil, nil, err
	}
	at, err := locate(target)
	if err != nil {
		return nil, nil, err
	}
	left, err := Leftovers(fsys, target)
	if err != nil {
		return nil, nil, err
	}
	for _, partial := range left {
		o := &Output{fsys: fsys, at: at, kind: kind, force: force, partial: partial, resumed: true}
		lines, err := o.take(key)
		if errors.Is(err, errOther) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("resuming output %q: %w", target, err)
		}
		return o, lines, nil
	}
	return nil, nil, nil
}

// errOther says that a leftover is not the one to resume.
var errOther = errors.New("no partial of this work")

// take opens the journal of a partial and what else an Output holds open.
func (o *Output) take(key string) (lines []string, err error) {
	path := o.partial + journalMark
	data, err := o.fsys.ReadFile(path)
	if err != nil {
		return nil, errOther
	}
	if lines = linesOf(data); len(lines) == 0 || lines[0] != key {
		return nil, errOther
	}
	file, err := o.fsys.Open(path)
	if err != nil {
		return nil, bare(err)
	}
	o.journal = &journal{file: file, path: path}
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	if err := lock(file); err != nil {
		return nil, err
	}
	// Until the lock was there the other run may have gone on, or come to its end.
	if data, err = o.fsys.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
		return nil, errOther
	} else if err != nil {
		return nil, bare(err)
	}
	lines = linesOf(data)
	for _, line := range lines {
		o.journal.size += int64(len(line)) + 1
	}
	if o.self, err = o.fsys.Lstat(o.partial); err != nil {
		return nil, errOther
	}
	if o.self.IsDir() != (o.kind == KindDir) {
		return nil, errOther
	}
	o.id = o.partial[strings.LastIndexByte(o.partial, '-')+1:]
	if o.kind == KindFile {
		if o.single, err = o.fsys.Open(o.partial); err != nil {
			return nil, bare(err)
		}
	}
	return lines[1:], nil
}

func lock(f File) error {
	if l, ok := f.(locker); ok {
		return l.TryLock()
	}
	return nil
}

// linesOf returns the complete lines; what a crash has cut off or never written
// ends them.
func linesOf(data []byte) (lines []string) {
	for {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok || bytes.IndexByte(line, 0) >= 0 {
			return lines
		}
		lines, data = append(lines, string(line)), rest
	}
}

// withoutJournals drops journals whose partial is in the list too.
func withoutJournals(paths []string) []string {
	there := make(map[string]bool)
	for _, path := range paths {
		there[filepath.Clean(path)] = true
	}
	var kept []string
	for _, path := range paths {
		if partial, ok := strings.CutSuffix(path, journalMark); !ok || !there[filepath.Clean(partial)] {
			kept = append(kept, path)
		}
	}
	return kept
}
