package fsatomic

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// The names beside a target: partialMark and oldMark follow its name, and
// 8 hexadecimal digits follow them.
const (
	partialMark = ".partial-" // an output in the making, or one just replaced
	oldMark     = ".old-"     // the only copy of an output being replaced
)

// lookTries bounds how often a target that others keep replacing is looked at.
const lookTries = 16

var leftoverTail = regexp.MustCompile(`^\.(partial|old)-[0-9a-f]{8}(\.journal)?$`)

// Check tells whether an output may be made, without making anything. [New]
// calls it; a dry run calls it alone.
func Check(fsys FS, target string, kind Kind, force bool) error {
	at, err := locate(target)
	if err != nil {
		return err
	}
	if kind == KindFile && at.target != target {
		return &RefusedError{target, "it names a folder and the output is a file"}
	}
	if err := at.checkParent(fsys); err != nil {
		return err
	}
	return at.checkOccupant(fsys, kind, force)
}

// Leftovers returns the paths that interrupted runs, or runs that still go on,
// have left beside the target. Those with ".old-" in their name may be the only
// copy of an output that was about to be replaced. Call it before [New], which
// adds one.
func Leftovers(fsys FS, target string) ([]string, error) {
	at, err := locate(target)
	if err != nil {
		return nil, err
	}
	entries, err := fsys.ReadDir(at.parent)
	if err != nil {
		return nil, fmt.Errorf("listing folder %q: %w", at.parent, bare(err))
	}
	var found []string
	for _, entry := range entries {
		if tail, ok := strings.CutPrefix(entry.Name(), at.base); ok && leftoverTail.MatchString(tail) {
			found = append(found, strings.TrimSuffix(at.target, at.base)+entry.Name())
		}
	}
	return withoutJournals(found), nil
}

// location is a target taken apart. The parts are never cleaned: "link/../x"
// is not "x" when the link leads elsewhere.
type location struct {
	target string // without separators at the end, which would follow a link
	parent string
	base   string
}

func locate(target string) (location, error) {
	at := location{target: trimSeparators(target)}
	at.parent, at.base = filepath.Split(at.target)
	if at.base == "" || at.base == "." || at.base == ".." {
		return location{}, &RefusedError{target, "it does not name a new file or folder"}
	}
	if at.parent = trimSeparators(at.parent); at.parent == "" {
		at.parent = "."
	}
	return at, nil
}

func trimSeparators(path string) string {
	root := len(filepath.VolumeName(path)) + 1
	for len(path) > root && os.IsPathSeparator(path[len(path)-1]) {
		path = path[:len(path)-1]
	}
	return path
}

func (at location) checkParent(fsys FS) error {
	info, err := fsys.Stat(at.parent)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return fmt.Errorf("creating output %q: opening folder %q: %w", at.target, at.parent, bare(err))
	}
	return nil
}

// checkOccupant returns nil if nothing has the target's name or if force may
// replace what has it. A bad impression counts only if what made it is still
// there: another run that has just replaced a folder empties the old one.
func (at location) checkOccupant(fsys FS, kind Kind, force bool) error {
	info, err := at.look(fsys, kind, force)
	for range lookTries {
		if err == nil || info == nil || !at.changed(fsys, info) {
			break
		}
		info, err = at.look(fsys, kind, force)
	}
	return err
}

func (at location) changed(fsys FS, info fs.FileInfo) bool {
	now, err := fsys.Lstat(at.target)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return !sameFile(info, now)
}

// look judges what has the target's name, which it returns too. What force
// would not replace either is refused at once, so that nobody is told to try
// force in vain.
func (at location) look(fsys FS, kind Kind, force bool) (fs.FileInfo, error) {
	info, err := fsys.Lstat(at.target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("checking output %q: %w", at.target, bare(err))
	}
	reason, err := at.reasonToKeep(fsys, info, kind)
	if err == nil && reason == "" && !force {
		return info, &ExistsError{at.target}
	}
	if err == nil && reason == "" && kind == KindDir && info.IsDir() {
		reason, err = at.reasonToKeepFolder(fsys)
	}
	if err != nil {
		return info, fmt.Errorf("checking output %q: %w", at.target, bare(err))
	}
	if reason != "" {
		return info, &RefusedError{at.target, reason}
	}
	return info, nil
}

func (at location) reasonToKeep(fsys FS, info fs.FileInfo, kind Kind) (string, error) {
	if info.Mode()&fs.ModeSymlink != 0 {
		// The link is replaced, not what it leads to, and only that counts.
		// Except that nobody wants to lose /dev/stdout.
		info, err := fsys.Stat(at.target)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return "it leads to a device, a pipe or a socket", nil
		}
		return "", nil
	}
	switch {
	case info.IsDir() && kind == KindFile:
		return "it is a folder and the output is a file", nil
	case info.IsDir():
		return "", nil
	case !info.Mode().IsRegular():
		return "it is a device, a pipe or a socket", nil
	case kind == KindDir:
		return "it is a file and the output is a folder", nil
	}
	return "", nil
}

// reasonToKeepFolder spares a folder that was not made by a tool like this one:
// a slip in "--output ~" must not cost a home folder.
func (at location) reasonToKeepFolder(fsys FS) (string, error) {
	entries, err := fsys.ReadDir(at.target)
	if err != nil {
		return "", err
	}
	known := len(entries) == 0
	for _, entry := range entries {
		if entry.IsDir() {
			ok, err := isModule(fsys, at.target+string(os.PathSeparator)+entry.Name())
			if err != nil {
				return "", err
			}
			if !ok {
				return fmt.Sprintf("it contains the folder %q", entry.Name()), nil
			}
			continue
		}
		known = known || marksModel(entry.Name())
	}
	if !known {
		return "it does not look like a model or an adapter: " +
			"no config.json, adapter_config.json, *.safetensors or *.gguf", nil
	}
	return "", nil
}

// isModule reports whether a folder is that of a module of sentence-transformers, which
// stands beside a model: a number and a word, with a config.json and no folders.
func isModule(fsys FS, path string) (bool, error) {
	number, word, ok := strings.Cut(filepath.Base(path), "_")
	if _, err := strconv.ParseUint(number, 10, 16); err != nil || !ok || word == "" {
		return false, nil
	}
	entries, err := fsys.ReadDir(path)
	if err != nil {
		return false, err
	}
	found := false
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			return false, nil
		}
		found = found || entry.Name() == "config.json"
	}
	return found, nil
}

func marksModel(name string) bool {
	switch filepath.Ext(name) {
	case ".safetensors", ".gguf":
		return true
	}
	return name == "config.json" || name == "adapter_config.json"
}
