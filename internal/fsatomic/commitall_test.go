package fsatomic_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// writeBoth makes two folders, /a and /b, in one commit.
func writeBoth(fsys fsatomic.FS, force bool) error {
	var outputs []*fsatomic.Output
	for _, target := range []string{"/a", "/b"} {
		o, err := fsatomic.New(fsys, target, fsatomic.KindDir, force)
		if err == nil {
			outputs = append(outputs, o)
			err = fill(o, "new"+target)
		}
		if err != nil {
			for _, o := range outputs {
				err = errors.Join(err, o.Abort())
			}
			return err
		}
	}
	return fsatomic.CommitAll(outputs...)
}

func fill(o *fsatomic.Output, content string) error {
	f, err := o.Create("model.safetensors", int64(len(content)))
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(content), 0)
	return err
}

// TestCommitAll fails every call in turn: both outputs are new, or both are as they
// were, whatever was there before.
func TestCommitAll(t *testing.T) {
	for _, before := range []string{"", "a", "b", "ab"} {
		for _, swap := range []bool{true, false} {
			t.Run(fmt.Sprintf("%q there, swapping %v", before, swap), func(t *testing.T) {
				failed, done := 0, 0
				driveFaults(t, func(k int) bool {
					mem := faultfs.NewMem()
					old := tree{}
					for _, name := range strings.Split(before, "") {
						old = old.plus(tree{name + "/": "", name + "/model.safetensors": "old/" + name, name + "/config.json": "{}"})
					}
					plant(t, mem, "/", old)
					injectors := []faultfs.Injector{faultfs.FailAt(k, syscall.EIO)}
					if !swap {
						injectors = append(injectors, func(c faultfs.Call) error {
							if c.Op == faultfs.OpExchange {
								return errors.ErrUnsupported
							}
							return nil
						})
					}
					fsys := faultfs.New(mem, injectors...)
					err := writeBoth(fsys, true)
					found := harvest(t, mem, "/")
					want := tree{"a/": "", "b/": "", "a/model.safetensors": "new/a", "b/model.safetensors": "new/b"}
					var left *fsatomic.CleanupError
					if err != nil && !errors.As(err, &left) {
						want = old
						failed++
					} else {
						done++
					}
					for name, content := range want {
						if got, ok := found[name]; !ok || got != content {
							t.Fatalf("call %d failed (%v): %q is %q, want %q", k, err, name, got, content)
						}
					}
					for name := range found {
						if _, ok := want[name]; !ok && left == nil && !strings.Contains(name, ".partial-") {
							t.Fatalf("call %d failed (%v): there is %q", k, err, name)
						}
					}
					return fsys.Calls() >= k
				})
				if failed < 20 || done < 1 {
					t.Errorf("%d runs failed, %d were done", failed, done)
				}
			})
		}
	}
}

// TestCommitAllRefused takes back the first output when the second has no place.
func TestCommitAllRefused(t *testing.T) {
	mem := faultfs.NewMem()
	var outputs []*fsatomic.Output
	for _, target := range []string{"/a", "/b"} {
		o, err := fsatomic.New(mem, target, fsatomic.KindDir, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := fill(o, "new"); err != nil {
			t.Fatal(err)
		}
		outputs = append(outputs, o)
	}
	plant(t, mem, "/", tree{"b/": "", "b/theirs": "x"}) // since the check
	err := fsatomic.CommitAll(outputs...)
	var exists *fsatomic.ExistsError
	if !errors.As(err, &exists) || exists.Path != "/b" {
		t.Errorf("error %v", err)
	}
	if found := harvest(t, mem, "/"); len(found) != 2 || found["b/theirs"] != "x" {
		t.Errorf("left are %v", found)
	}
	if err := fsatomic.CommitAll(outputs...); !errors.As(err, &exists) {
		t.Errorf("again: %v", err)
	}
}
