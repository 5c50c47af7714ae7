package fsatomic_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// TestCheckInputs has the ways in which an output can hit an input. Inputs and
// targets are relative to a folder with
//
//	base/model.safetensors, base/config.json
//	adapter.safetensors     link.safetensors -> adapter.safetensors
//	hard.safetensors        a hard link to adapter.safetensors
//	hub/blobs/b1            hub/snap/model.safetensors -> ../blobs/b1
//	hub/snap/dangling -> nowhere
//	baselink -> base        dangling -> nowhere
func TestCheckInputs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"base/model.safetensors", "base/config.json", "adapter.safetensors", "hub/blobs/b1", "hub/snap/config.json",
		"deep/er/x",
	} {
		plantDeep(t, dir+"/"+name, false, name)
	}
	for name, to := range map[string]string{
		"link.safetensors":           "adapter.safetensors",
		"hub/snap/model.safetensors": "../blobs/b1",
		"hub/snap/dangling":          "nowhere",
		"baselink":                   "base",
		"dangling":                   "nowhere",
		"deeplink":                   "deep/er",
	} {
		if err := os.Symlink(to, dir+"/"+name); err != nil {
			t.Skip(err)
		}
	}
	if err := os.Link(dir+"/adapter.safetensors", dir+"/hard.safetensors"); err != nil {
		t.Skip(err)
	}
	tests := []struct {
		name   string
		target string
		inputs string
		want   string // part of the reason, "" for allowed
	}{
		{"apart", "out", "base adapter.safetensors", ""},
		{"apart and there", "hub/snap/config.json", "base adapter.safetensors", ""},
		{"beside", "base2", "base", ""},
		{"beside an input file", "base/out.gguf", "base/model.safetensors", ""},
		{"same file", "adapter.safetensors", "base adapter.safetensors", `would overwrite input "adapter.safetensors"`},
		{"same folder", "base", "base", "would overwrite"},
		{"same folder, separator", "base/", "base", "would overwrite"},
		{"same folder, other spelling", "hub/../base", "./base/.", "would overwrite"},
		{"two dots behind a link", "deeplink/../er", "deep/er", "would overwrite"},
		{"link to input", "link.safetensors", "adapter.safetensors", "would overwrite"},
		{"input is a link", "adapter.safetensors", "link.safetensors", "would overwrite"},
		{"both the same link", "link.safetensors", "link.safetensors", "would overwrite"},
		{"hard link", "hard.safetensors", "adapter.safetensors", "would overwrite"},
		{"link to folder", "baselink", "base", "would overwrite"},
		{"inside", "base/out", "base", "would lie inside"},
		{"deep inside", "deep/er/out", "deep", "would lie inside"},
		{"inside through a link", "baselink/out", "base", "would lie inside"},
		{"inside, input through a link", "base/out", "baselink", "would lie inside"},
		{"folder of an input", "base", "base/model.safetensors", "would replace the folder of"},
		{"link to the folder of an input", "baselink", "base/model.safetensors", "would replace the folder of"},
		{"folder far above an input", "deep", "deep/er/x", "would replace the folder of"},
		{"file of an input folder", "base/model.safetensors", "base", "would lie inside"},
		{"blob behind a snapshot", "hub/blobs/b1", "hub/snap", "would overwrite"},
		{"blobs behind a snapshot", "hub/blobs", "hub/snap", "would replace the folder of"},
		{"folder of a linked input", "hub/blobs", "hub/snap/model.safetensors", "would replace the folder of"},
		{"folder of the link", "hub/snap", "hub/snap/model.safetensors", "would replace the folder of"},
		{"dangling link", "dangling", "base", ""},
		{"second input", "adapter.safetensors", "base link.safetensors", "would overwrite"},
	}
	t.Chdir(dir)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, prefix := range []string{"", dir + "/"} {
				inputs := strings.Fields(tt.inputs)
				for i := range inputs {
					inputs[i] = prefix + inputs[i]
				}
				err := fsatomic.CheckInputs(fsatomic.OS{}, tt.target, inputs...)
				if tt.want == "" {
					if err != nil {
						t.Error(err)
					}
					continue
				}
				if !errors.As(err, new(*fsatomic.RefusedError)) ||
					!strings.Contains(strings.ReplaceAll(err.Error(), dir+"/", ""), tt.want) {
					t.Errorf("got error %v, want a RefusedError with %q", err, tt.want)
				}
			}
		})
	}
}

func TestCheckInputsMissing(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := fsatomic.CheckInputs(fsatomic.OS{}, "out", "no.safetensors"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing input: got error %v", err)
	}
	if err := fsatomic.CheckInputs(fsatomic.OS{}, "no/out"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing parent: got error %v", err)
	}
	if err := fsatomic.CheckInputs(fsatomic.OS{}, ".", "x"); !errors.As(err, new(*fsatomic.RefusedError)) {
		t.Errorf("dot: got error %v", err)
	}
}

// TestCheckInputsFaults wants no fault to read as "no conflict".
func TestCheckInputsFaults(t *testing.T) {
	for _, target := range []string{"/base/model.safetensors", "/base", "/base/out", "/all"} {
		driveFaults(t, func(k int) bool {
			mem := faultfs.NewMem()
			plant(t, mem, "/", tree{"base/model.safetensors": ""})
			if err := mem.Mkdir("/all"); err != nil {
				t.Fatal(err)
			}
			if err := mem.RenameNoReplace("/base", "/all/base"); err != nil {
				t.Fatal(err)
			}
			fsys := faultfs.New(mem, faultfs.FailAt(k, syscall.EACCES))
			name := strings.Replace(target, "/base", "/all/base", 1)
			err := fsatomic.CheckInputs(fsys, name, "/all/base")
			if err == nil {
				t.Errorf("%s: no conflict with a fault at call %d", name, k)
			}
			return fsys.Calls() >= k
		})
	}
}
