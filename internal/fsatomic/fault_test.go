package fsatomic_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

// TestFaults fails the k-th call for k = 1, 2, ... until a run needs fewer
// calls, and looks at the disk after each. It guards the promise that an output
// is whole or absent and that the old one survives, whatever breaks.
func TestFaults(t *testing.T) {
	modes := []struct {
		name  string
		fail  func(k int, err error) faultfs.Injector
		judge func(*testing.T, outcome)
	}{
		{"once", faultfs.FailAt, judgeOnce},
		{"from then on", faultfs.FailFrom, judgeSticky},
		{"late", func(k int, err error) faultfs.Injector {
			return faultfs.FailAt(k, faultfs.Late(err))
		}, judgeLate},
	}
	errs := []error{syscall.EIO, syscall.ENOSPC}
	callers := []struct {
		name string
		run  func(scenario, fsatomic.FS, string) error
	}{
		{"careful", scenario.run},
		{"careless", scenario.runCareless},
	}
	for _, s := range scenarios {
		for _, mode := range modes {
			for _, injected := range errs {
				for _, caller := range callers {
					name := fmt.Sprintf("%s/%s/%v/%s", s.name, mode.name, injected, caller.name)
					t.Run(name, func(t *testing.T) {
						runs := driveFaults(t, func(k int) bool {
							mem := faultfs.NewMem()
							s.prepare(t, mem, "/")
							fsys := faultfs.New(mem, append(s.injectors(), mode.fail(k, injected))...)
							err := caller.run(s, fsys, "/")
							judge(t, s, fsys, harvest(t, mem, "/"), err, mode.judge)
							return fsys.Calls() >= k
						})
						if runs < 10 {
							t.Errorf("only %d calls were made to fail", runs)
						}
					})
				}
			}
		}
	}
}

// TestRaces gives one wrong answer about a name, as if another process had been
// there for a moment.
func TestRaces(t *testing.T) {
	answers := map[faultfs.Op][]error{
		faultfs.OpCreate:   {syscall.EEXIST},
		faultfs.OpMkdir:    {syscall.EEXIST},
		faultfs.OpRename:   {syscall.EEXIST, syscall.ENOENT},
		faultfs.OpExchange: {syscall.ENOENT},
	}
	for _, s := range scenarios {
		for op, errs := range answers {
			for _, injected := range errs {
				t.Run(fmt.Sprintf("%s/%s/%v", s.name, op, injected), func(t *testing.T) {
					for k := range 100 { // more than there are calls
						mem := faultfs.NewMem()
						s.prepare(t, mem, "/")
						fsys := faultfs.New(mem, append(s.injectors(), func(call faultfs.Call) error {
							if call.N == k && call.Op == op {
								return injected
							}
							return nil
						})...)
						err := s.run(fsys, "/")
						judge(t, s, fsys, harvest(t, mem, "/"), err, judgeOnce)
					}
				})
			}
		}
	}
}

// TestFaultsOnDisk is the short form on the real file system.
func TestFaultsOnDisk(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			driveFaults(t, func(k int) bool {
				dir := t.TempDir()
				s.prepare(t, realDisk{}, dir)
				fsys := faultfs.New(realDisk{}, append(s.injectors(), faultfs.FailAt(k, syscall.EIO))...)
				err := s.run(fsys, dir)
				judge(t, s, fsys, harvest(t, realDisk{}, dir), err, judgeOnce)
				return fsys.Calls() >= k
			})
		})
	}
}

// driveFaults runs k = 1, 2, ... until a run makes fewer calls.
func driveFaults(t *testing.T, run func(k int) (reached bool)) (runs int) {
	t.Helper()
	for k := 1; run(k); k++ {
		if t.Failed() {
			t.Fatalf("at call %d", k)
		}
		runs = k
	}
	return runs
}

// outcome is what a run with a fault left.
type outcome struct {
	scenario scenario
	fault    faultfs.Call // the first
	err      error
	target   tree
	left     map[string]tree // by name
}

func judge(t *testing.T, s scenario, fsys *faultfs.FS, disk tree, err error, judge func(*testing.T, outcome)) {
	t.Helper()
	if n := fsys.OpenFiles(); n != 0 {
		t.Errorf("%d files are still open", n)
	}
	for name, content := range bystander {
		if disk[name] != content {
			t.Errorf("bystander %q is now %q", name, disk[name])
		}
	}
	faults := slices.DeleteFunc(fsys.Faults(), func(call faultfs.Call) bool {
		return s.twoStep && call.Op == faultfs.OpExchange
	})
	o := outcome{scenario: s, err: err, target: disk.below("out"), left: disk.leftovers()}
	if len(faults) == 0 {
		if err != nil {
			t.Errorf("error without a fault: %v", err)
		}
		if !maps.Equal(o.target, s.want()) || len(o.left) > 0 {
			t.Errorf("without a fault: target %q, left %q", o.target, o.left)
		}
		return
	}
	o.fault = faults[0]
	t.Logf("%v: %v", o.fault, err)
	judge(t, o)
}

// judgeOnce wants a single fault to leave the old state and no rubbish, or else
// to be made up for without a trace.
func judgeOnce(t *testing.T, o outcome) {
	t.Helper()
	if len(o.left) > 0 {
		t.Errorf("left behind: %q", o.left)
	}
	if o.err == nil {
		if !maps.Equal(o.target, o.scenario.want()) {
			t.Errorf("no error, but the target is %q", o.target)
		}
		mayPass(t, o)
		return
	}
	if !maps.Equal(o.target, o.scenario.old) {
		t.Errorf("the target was changed to %q", o.target)
	}
}

// judgeSticky lets rubbish stay, because nothing can be removed any more.
func judgeSticky(t *testing.T, o outcome) {
	t.Helper()
	if o.err == nil {
		t.Errorf("no error from a disk that is gone")
	}
	judgeNothingLost(t, o)
}

// judgeLate wants nothing to be lost when a call does more than it says.
func judgeLate(t *testing.T, o outcome) {
	t.Helper()
	if o.err == nil {
		mayPass(t, o)
	}
	judgeNothingLost(t, o)
}

// mayPass tells which faults need not end in an error: those of removing,
// which is tried twice, and those of a look at a name that another look follows.
func mayPass(t *testing.T, o outcome) {
	t.Helper()
	switch o.fault.Op {
	case faultfs.OpWrite, faultfs.OpTruncate, faultfs.OpSync, faultfs.OpClose, faultfs.OpSyncDir:
		t.Errorf("no error after the failure of %v", o.fault)
	}
}

// judgeNothingLost wants the old or the new output whole at the target, and the
// old one somewhere unless the run committed.
func judgeNothingLost(t *testing.T, o outcome) {
	t.Helper()
	isOld := maps.Equal(o.target, o.scenario.old)
	isNew := maps.Equal(o.target, o.scenario.want())
	if !isOld && !isNew && o.target != nil {
		t.Errorf("the target is neither old nor new: %q", o.target)
	}
	var cleanup *fsatomic.CleanupError
	committed := o.err == nil || errors.As(o.err, &cleanup)
	if committed && !isNew {
		t.Errorf("committed, but the target is %q", o.target)
	}
	if committed || isOld {
		return
	}
	for _, left := range o.left {
		if maps.Equal(left, o.scenario.old) {
			return
		}
	}
	if o.scenario.old != nil {
		t.Errorf("the old output is lost: target %q, left %q", o.target, o.left)
	}
}

// TestSyncIsNotRetried guards against the second, successful sync that some
// systems answer a lost write with.
func TestSyncIsNotRetried(t *testing.T) {
	for _, s := range scenarios {
		syncs := map[string]int{}
		fsys := faultfs.New(faultfs.NewMem(), func(call faultfs.Call) error {
			if call.Op != faultfs.OpSync {
				return nil
			}
			if syncs[call.Path]++; syncs[call.Path] == 1 {
				return syscall.EIO
			}
			return nil
		})
		if err := s.runCareless(fsys, "/"); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: got error %v, want EIO", s.name, err)
		}
		for name, n := range syncs {
			if n > 1 {
				t.Errorf("%s: %s was synced %d times", s.name, name, n)
			}
		}
	}
}

// TestFolderSyncUnsupported guards network file systems, which refuse to sync a
// folder.
func TestFolderSyncUnsupported(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EINVAL, syscall.ENOTSUP, syscall.ENOSYS} {
		for _, s := range scenarios {
			mem := faultfs.NewMem()
			s.prepare(t, mem, "/")
			fsys := faultfs.New(mem, append(s.injectors(), faultfs.FailOp(faultfs.OpSyncDir, errno))...)
			if err := s.run(fsys, "/"); err != nil {
				t.Errorf("%s with %v: %v", s.name, errno, err)
			}
			checkTree(t, harvest(t, mem, "/"), bystander.plus(s.want().under("out")))
		}
	}
}

// TestReplacedWhileLooked lets another run replace the folder that Commit looks
// at and empty the old one: that must not read as a foreign folder.
func TestReplacedWhileLooked(t *testing.T) {
	mem := faultfs.NewMem()
	s := scenario{kind: fsatomic.KindDir, force: true, old: oldDir}
	s.prepare(t, mem, "/")
	looks := 0
	fsys := faultfs.New(mem, func(call faultfs.Call) error {
		if call.Op != faultfs.OpReadDir || call.Path != "/out" {
			return nil
		}
		if looks++; looks != 2 { // the first is that of New
			return nil
		}
		if err := mem.RenameNoReplace("/out", "/elsewhere"); err != nil {
			t.Error(err)
		}
		plant(t, mem, "/", oldDir.under("out"))
		return syscall.ENOENT
	})
	if err := s.run(fsys, "/"); err != nil {
		t.Fatal(err)
	}
	checkTree(t, harvest(t, mem, "/"), bystander.plus(newDir.under("out")).plus(oldDir.under("elsewhere")))
}

// TestCommitUndone fails the last folder sync and all attempts to move the old
// output back: nothing may be removed then.
func TestCommitUndone(t *testing.T) {
	for _, s := range scenarios {
		mem := faultfs.NewMem()
		s.prepare(t, mem, "/")
		moved := false
		fsys := faultfs.New(mem, append(s.injectors(), func(call faultfs.Call) error {
			// New syncs the parent too, before anything was moved.
			if call.Op == faultfs.OpSyncDir && call.Path == "/" && harvestedNew(t, mem, s) {
				moved = true
			}
			if moved && call.Op != faultfs.OpRemove && call.Op != faultfs.OpLstat && call.Op != faultfs.OpReadDir {
				return syscall.EIO
			}
			return nil
		})...)
		err := s.run(fsys, "/")
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: got error %v, want EIO", s.name, err)
		}
		disk := harvest(t, mem, "/")
		judgeNothingLost(t, outcome{scenario: s, err: err, target: disk.below("out"), left: disk.leftovers()})
		if !maps.Equal(disk.below("out"), s.want()) {
			t.Errorf("%s: the complete output was removed", s.name)
		}
	}
}

// TestRetreatSparesOthers fails the last folder sync after another run has put
// its output in place of ours.
func TestRetreatSparesOthers(t *testing.T) {
	theirs := tree{"": "theirs"}
	for _, s := range scenarios {
		if s.kind != fsatomic.KindFile {
			continue
		}
		mem := faultfs.NewMem()
		s.prepare(t, mem, "/")
		fsys := faultfs.New(mem, append(s.injectors(), func(call faultfs.Call) error {
			if call.Op != faultfs.OpSyncDir || call.Path != "/" || !harvestedNew(t, mem, s) {
				return nil
			}
			if err := mem.Remove("/out"); err != nil {
				t.Error(err)
			}
			plant(t, mem, "/", theirs.under("out"))
			return syscall.EIO
		})...)
		if err := s.run(fsys, "/"); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: got error %v, want EIO", s.name, err)
		}
		if got := harvest(t, mem, "/").below("out"); !maps.Equal(got, theirs) {
			t.Errorf("%s: the other run's output became %q", s.name, got)
		}
	}
}

func harvestedNew(t *testing.T, d disk, s scenario) bool {
	t.Helper()
	return maps.Equal(harvest(t, d, "/").below("out"), s.want())
}

func TestCleanupError(t *testing.T) {
	mem := faultfs.NewMem()
	s := scenario{kind: fsatomic.KindDir, force: true, old: oldDir}
	s.prepare(t, mem, "/")
	err := s.run(faultfs.New(mem, faultfs.FailOp(faultfs.OpRemove, syscall.EACCES)), "/")
	var cleanup *fsatomic.CleanupError
	if !errors.As(err, &cleanup) || !errors.Is(err, syscall.EACCES) {
		t.Fatalf("got error %v, want a CleanupError", err)
	}
	disk := harvest(t, mem, "/")
	if !maps.Equal(disk.below("out"), newDir) {
		t.Errorf("the target is %q", disk.below("out"))
	}
	if !maps.Equal(disk.below(cleanup.Path[1:]), oldDir) {
		t.Errorf("%q holds %q", cleanup.Path, disk.below(cleanup.Path[1:]))
	}
}
