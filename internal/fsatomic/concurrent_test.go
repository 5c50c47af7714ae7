package fsatomic_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/loratool/loratool/internal/fsatomic"
	"github.com/loratool/loratool/internal/fsatomic/faultfs"
)

const racers = 8

// TestOneWinner lets 8 outputs race for one target: one wins, the others learn
// that it exists, nothing is mixed and nothing is left.
func TestOneWinner(t *testing.T) {
	for round := range 10 {
		kind := fsatomic.KindFile
		if round%2 == 1 {
			kind = fsatomic.KindDir
		}
		dir := t.TempDir()
		errs := race(t, fsatomic.OS{}, dir, kind, false)
		winner := -1
		for i, err := range errs {
			if err == nil && winner < 0 {
				winner = i
			} else if !errors.As(err, new(*fsatomic.ExistsError)) {
				t.Errorf("racer %d: got error %v, want an ExistsError", i, err)
			}
		}
		if winner < 0 {
			t.Fatal("nobody won")
		}
		if got := harvest(t, realDisk{}, dir); !maps.Equal(got, racerTree(kind, winner)) {
			t.Errorf("racer %d won, but the disk holds %.300s", winner, fmt.Sprint(got))
		}
	}
}

// TestForcedRace lets 8 outputs replace each other. The last one stays, whole.
func TestForcedRace(t *testing.T) {
	probe := t.TempDir()
	plant(t, realDisk{}, probe, tree{"a": "", "b": ""})
	err := fsatomic.OS{}.Exchange(filepath.Join(probe, "a"), filepath.Join(probe, "b"))
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	for round := range 10 {
		kind := fsatomic.KindFile
		if round%2 == 1 {
			kind = fsatomic.KindDir
		}
		dir := t.TempDir()
		plant(t, realDisk{}, dir, racerTree(kind, 99))
		errs := race(t, fsatomic.OS{}, dir, kind, true)
		for i, err := range errs {
			if err != nil {
				t.Errorf("racer %d: %v", i, err)
			}
		}
		checkRacerTree(t, harvest(t, realDisk{}, dir), kind)
	}
}

// TestForcedRaceInTwoSteps allows more: between the steps a target is free.
// What is at the target in the end must still be whole.
func TestForcedRaceInTwoSteps(t *testing.T) {
	for range 10 {
		mem := faultfs.NewMem()
		plant(t, mem, "/", racerTree(fsatomic.KindDir, 99))
		fsys := faultfs.New(mem, faultfs.FailOp(faultfs.OpExchange, syscall.ENOSYS))
		race(t, fsys, "/", fsatomic.KindDir, true)
		disk := harvest(t, mem, "/")
		for name := range disk.leftovers() {
			if strings.HasPrefix(name, "out.partial") {
				t.Errorf("%q is left", name)
			}
		}
		checkRacerTree(t, disk.below("out").under("out"), fsatomic.KindDir)
	}
}

// race commits outputs of different content at the same moment.
func race(t *testing.T, fsys fsatomic.FS, dir string, kind fsatomic.Kind, force bool) [racers]error {
	t.Helper()
	var outs [racers]*fsatomic.Output
	for i := range outs {
		out, err := fsatomic.New(fsys, filepath.Join(dir, "out"), kind, force)
		if err != nil {
			t.Fatal(err)
		}
		for rel, content := range racerTree(kind, i) {
			if strings.HasSuffix(rel, "/") {
				continue
			}
			name := strings.TrimPrefix(strings.TrimPrefix(rel, "out"), "/")
			f, err := out.Create(name, int64(len(content)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte(content), 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		outs[i] = out
	}
	var errs [racers]error
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i, out := range outs {
		wg.Go(func() {
			<-start
			errs[i] = out.Commit()
		})
	}
	close(start)
	wg.Wait()
	return errs
}

// racerTree is what racer i writes.
func racerTree(kind fsatomic.Kind, i int) tree {
	content := strings.Repeat(fmt.Sprintf("racer %02d;", i), 500)
	if kind == fsatomic.KindFile {
		return tree{"out": content}
	}
	return tree{"out/": "", "out/config.json": content, "out/model.safetensors": content}
}

func checkRacerTree(t *testing.T, got tree, kind fsatomic.Kind) {
	t.Helper()
	for i := range racers {
		if maps.Equal(got, racerTree(kind, i)) {
			return
		}
	}
	t.Errorf("the disk holds no racer's output: %.300s", fmt.Sprint(got))
}

// TestWriteAtConcurrently writes one file from many goroutines.
func TestWriteAtConcurrently(t *testing.T) {
	const workers, chunk = 16, 1000
	dir := t.TempDir()
	out, err := fsatomic.New(fsatomic.OS{}, filepath.Join(dir, "out"), fsatomic.KindFile, false)
	if err != nil {
		t.Fatal(err)
	}
	f, err := out.Create("", workers*chunk)
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	var wg sync.WaitGroup
	for i := range workers {
		part := bytes.Repeat([]byte{byte('a' + i)}, chunk)
		want = append(want, part...)
		wg.Go(func() {
			if _, err := f.WriteAt(part, int64(i*chunk)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := out.Commit(); err != nil {
		t.Fatal(err)
	}
	checkTree(t, harvest(t, realDisk{}, dir), tree{"out": string(want)})
}

// TestAbortDuringWrites aborts under the feet of the writers, who must get an
// error or have been in time, and then find nothing.
func TestAbortDuringWrites(t *testing.T) {
	mem := faultfs.NewMem()
	fsys := faultfs.New(mem)
	out, err := fsatomic.New(fsys, "/out", fsatomic.KindFile, false)
	if err != nil {
		t.Fatal(err)
	}
	f, err := out.Create("", 8)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				if _, err := f.WriteAt([]byte("12345678"), 0); err != nil {
					return
				}
			}
		})
	}
	if err := out.Abort(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	checkTree(t, harvest(t, mem, "/"), tree{})
	if n := fsys.OpenFiles(); n != 0 {
		t.Errorf("%d files are still open", n)
	}
}
