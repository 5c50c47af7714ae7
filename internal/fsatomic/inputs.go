package fsatomic

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// CheckInputs returns a [*RefusedError] if making the output would destroy or
// change an input: if the target is an input by any name (links of both kinds
// are followed), lies inside an input folder, or is a folder that holds an
// input. For an input folder its entries count as inputs too, because a hub
// cache keeps its files behind links. Inputs must exist.
func CheckInputs(fsys FS, target string, inputs ...string) error {
	at, err := locate(target)
	if err != nil {
		return err
	}
	out, err := survey(fsys, at.target, at.parent)
	if err != nil {
		return fmt.Errorf("checking output %q: %w", target, bare(err))
	}
	for _, input := range inputs {
		reason, err := out.conflict(fsys, input)
		if err != nil {
			return fmt.Errorf("comparing output %q with input %q: %w", target, input, bare(err))
		}
		if reason != "" {
			return &RefusedError{target, fmt.Sprintf("%s input %q", reason, input)}
		}
	}
	return nil
}

// place is where a path lies: what it leads to, nil for nothing, and the folders
// around its name.
type place struct {
	self   fs.FileInfo
	around []fs.FileInfo
}

// survey describes a path, which need not exist, and the folders around it,
// starting with its parent.
func survey(fsys FS, path, parent string) (place, error) {
	self, err := fsys.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return place{}, err
	}
	if err != nil {
		self = nil
	}
	around, err := ancestors(fsys, parent)
	return place{self, around}, err
}

// ancestors describes a folder and all folders above it.
func ancestors(fsys FS, dir string) ([]fs.FileInfo, error) {
	dir, err := fsys.Resolve(dir)
	if err != nil {
		return nil, err
	}
	var infos []fs.FileInfo
	for {
		info, err := fsys.Stat(dir)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
		up := filepath.Dir(dir)
		if up == dir {
			return infos, nil
		}
		dir = up
	}
}

// conflict says what the output would do to an input, "" for nothing.
func (out place) conflict(fsys FS, input string) (string, error) {
	info, err := fsys.Stat(input)
	if err != nil {
		return "", err
	}
	if contains(out.around, info) {
		return "would lie inside", nil
	}
	reason, err := out.replaces(fsys, input)
	if err != nil || reason != "" || !info.IsDir() {
		return reason, err
	}
	entries, err := fsys.ReadDir(input)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		reason, err := out.replaces(fsys, trimSeparators(input)+string(os.PathSeparator)+entry.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // a link that leads nowhere can not lose anything
		}
		if err != nil || reason != "" {
			return reason, err
		}
	}
	return "", nil
}

// replaces compares the target with an input, and with the folders around the
// input and around what it leads to.
func (out place) replaces(fsys FS, input string) (string, error) {
	if out.self == nil {
		return "", nil
	}
	parent, _ := filepath.Split(trimSeparators(input))
	if parent == "" {
		parent = "."
	}
	in, err := survey(fsys, input, parent)
	if err != nil {
		return "", err
	}
	if in.self != nil && sameFile(out.self, in.self) {
		return "would overwrite", nil
	}
	real, err := fsys.Resolve(input)
	if err != nil {
		return "", err
	}
	around, err := ancestors(fsys, filepath.Dir(real))
	if err != nil {
		return "", err
	}
	if contains(in.around, out.self) || contains(around, out.self) {
		return "would replace the folder of", nil
	}
	return "", nil
}

func contains(infos []fs.FileInfo, info fs.FileInfo) bool {
	return slices.ContainsFunc(infos, func(other fs.FileInfo) bool { return sameFile(other, info) })
}

// sameFile compares device and inode. For an FS that is not the system's, Sys
// must return a pointer that stands for the inode.
func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) || a.Sys() != nil && a.Sys() == b.Sys()
}
