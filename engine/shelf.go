package engine

import (
	"sync"

	"github.com/loratool/loratool/internal/kernel"
)

// computer is a bound step: it computes any of its rows, with the figures of each.
type computer interface {
	rows(b *buffers, out []byte, from, to int64, stats []kernel.RowStats) error
}

// shelf keeps the steps bound that are being read, and those read last as long as
// there is memory for them.
type shelf struct {
	mu    sync.Mutex
	freed sync.Cond // a step has no user any more
	limit int64     // bytes
	used  int64
	steps map[int]*heldStep
	clock int64
}

// heldStep is a step on the shelf.
type heldStep struct {
	step  int
	bytes int64
	users int
	last  int64 // when it was taken last

	once     sync.Once
	computer computer
	err      error
}

func (s *shelf) init(limit int64) {
	s.limit, s.steps = limit, make(map[int]*heldStep)
	s.freed.L = &s.mu
}

// take returns a step, bound if it was not. It waits while the memory is taken by
// steps in use; who waits uses none, so that those go on.
func (s *shelf) take(step int, bytes int64, bind func() (computer, error)) (*heldStep, error) {
	h := s.place(step, bytes)
	h.once.Do(func() {
		h.err = guard(func() (err error) {
			h.computer, err = bind()
			return err
		})
	})
	if h.err != nil {
		s.giveBack(h)
		return nil, h.err
	}
	return h, nil
}

// place finds a step or a place for it, and makes the caller a user of it.
func (s *shelf) place(step int, bytes int64) *heldStep {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.steps[step] == nil {
		if s.makeRoom(bytes) {
			s.steps[step] = &heldStep{step: step, bytes: bytes}
			s.used += bytes
			break
		}
		s.freed.Wait()
	}
	h := s.steps[step]
	h.users++
	s.clock++
	h.last = s.clock
	return h
}

// makeRoom lets go of steps without users, the one that was read longest ago first,
// until so many bytes are free. On an empty shelf there is always room.
func (s *shelf) makeRoom(bytes int64) bool {
	for s.used > 0 && s.used+bytes > s.limit {
		var oldest *heldStep
		for _, h := range s.steps {
			if h.users == 0 && (oldest == nil || h.last < oldest.last) {
				oldest = h
			}
		}
		if oldest == nil {
			return false
		}
		s.remove(oldest)
	}
	return true
}

func (s *shelf) remove(h *heldStep) {
	s.used -= h.bytes
	delete(s.steps, h.step)
}

// giveBack ends the use of a step. One that could not be bound does not stay.
func (s *shelf) giveBack(h *heldStep) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.users--; h.users > 0 {
		return
	}
	if h.err != nil {
		s.remove(h)
	}
	s.freed.Broadcast()
}
