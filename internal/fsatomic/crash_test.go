package fsatomic_test

import (
	"maps"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// TestCrash cuts the power before every call and after the last. Before Commit
// has returned the target must be old or new, after it must be new.
func TestCrash(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			mem := faultfs.NewMem()
			s.prepare(t, mem, "/")
			mem = mem.Crash(1, 0) // all durable
			cuts := 0
			fsys := faultfs.New(mem, append(s.injectors(), func(call faultfs.Call) error {
				cuts++
				cutPower(t, mem, func(disk tree) {
					if problem := s.halfway(disk); problem != "" {
						t.Errorf("power lost before %v: %s; disk holds\n%q", call, problem, disk)
					}
				})
				return nil
			})...)
			if err := s.run(fsys, "/"); err != nil {
				t.Fatal(err)
			}
			if cuts < 10 {
				t.Errorf("power was cut only %d times", cuts)
			}
			cutPower(t, mem, func(disk tree) {
				if !maps.Equal(disk.below("out"), s.want()) {
					t.Errorf("power lost after Commit: disk holds\n%q", disk)
				}
			})
		})
	}
}

// TestCrashAfterCommit goes on with other outputs after a Commit: none of their
// calls may endanger it.
func TestCrashAfterCommit(t *testing.T) {
	mem := faultfs.NewMem()
	s := scenario{kind: fsatomic.KindDir}
	if err := s.run(mem, "/"); err != nil {
		t.Fatal(err)
	}
	check := func(call faultfs.Call) error {
		cutPower(t, mem, func(disk tree) {
			if !maps.Equal(disk.below("out"), newDir) {
				t.Errorf("power lost before %v: disk holds\n%q", call, disk)
			}
		})
		return nil
	}
	fsys := faultfs.New(mem, check)
	if err := s.run(fsys, "/"); err == nil {
		t.Error("committed twice without force")
	}
	if _, err := fsatomic.Leftovers(fsys, "/out"); err != nil {
		t.Error(err)
	}
	other, err := fsatomic.New(fsys, "/other", fsatomic.KindFile, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Abort(); err != nil {
		t.Error(err)
	}
	_ = check(faultfs.Call{})
}

// cutPower looks at the disk with nothing, all, and several mixtures of the
// unsynced state kept.
func cutPower(t *testing.T, mem *faultfs.Mem, look func(tree)) {
	t.Helper()
	look(harvest(t, mem.Crash(0, 0), "/"))
	look(harvest(t, mem.Crash(1, 0), "/"))
	for seed := range uint64(12) {
		look(harvest(t, mem.Crash(0.5, seed), "/"))
	}
}

// halfway says what is wrong with a disk in the middle of a run.
func (s scenario) halfway(disk tree) string {
	for name, content := range bystander {
		if disk[name] != content {
			return "a bystander is gone"
		}
	}
	target := disk.below("out")
	if maps.Equal(target, s.old) || maps.Equal(target, s.want()) {
		return ""
	}
	if !s.twoStep || target != nil {
		return "the target is neither old nor new"
	}
	for _, left := range disk.leftovers() {
		if maps.Equal(left, s.old) {
			return ""
		}
	}
	return "the old output is gone and the new one is not there"
}
