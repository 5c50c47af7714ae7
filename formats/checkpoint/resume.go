package checkpoint

import (
	"encoding/json"
	"fmt"

	"github.com/loratool/loratool/internal/fsatomic"
)

// Part is a piece of an output that is complete: bytes [From, To) of a tensor,
// with what its maker wants to know when it finds it again.
type Part struct {
	Tensor   string          `json:"tensor"`
	From, To int64           // of the tensor's bytes
	Note     json.RawMessage `json:"note"`
}

// Journal begins to record the parts that are complete, under a key that tells
// this work from any other. At least every so many bytes what was written is
// made durable and the parts are recorded; a run that is killed loses no more.
func (s *Sink) Journal(key string, every int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.every = every
	return s.out.StartJournal(key)
}

// Finished notes a part that has been written.
func (s *Sink) Finished(p Part) error {
	line, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("recording %q: %w", p.Tensor, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, string(line))
	if s.written.Load() < s.every {
		return nil
	}
	notes := s.notes
	s.notes = nil
	s.written.Store(0)
	return s.out.Record(notes)
}

// Resume goes on with what an interrupted run of the same work has left beside
// the layout's path, and returns the parts that are complete: those that the
// caller agrees with it tells [Sink.Have], the others it writes. Without such a
// run the Sink is nil.
func Resume(fs fsatomic.FS, l *Layout, force bool, key string, every int64) (*Sink, []Part, error) {
	out, lines, err := fsatomic.Resume(fs, l.Path, l.kind(), force, key)
	if err != nil || out == nil {
		return nil, nil, err
	}
	s := newSink(l, out)
	s.every = every
	if err := s.create(); err != nil {
		// The partial stays: it is worth as much as before.
		return nil, nil, err
	}
	var parts []Part
	for _, line := range lines {
		var p Part
		if json.Unmarshal([]byte(line), &p) != nil {
			break
		}
		parts = append(parts, p)
	}
	return s, parts, nil
}

// Have says that a part needs not to be written. It is false for one that the
// layout has no place for.
func (s *Sink) Have(p Part) bool {
	pl, ok := s.places[p.Tensor]
	if !ok || p.From < 0 || p.To < p.From || p.To > pl.Size() {
		return false
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.done.add(p.From, p.To)
}
