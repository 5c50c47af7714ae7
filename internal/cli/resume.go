package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/loratool/loratool/engine"
	"github.com/loratool/loratool/formats/checkpoint"
	"github.com/loratool/loratool/plan"
)

// recordEvery bytes of output what is complete is made durable: a few seconds'
// work, against a wait for the disk that would come at the end anyway.
const recordEvery = 1 << 30

// identityOf is a key of a run: its command and options, and the inputs as they
// were opened. The same key means the same output, byte for byte.
func identityOf(command string, options any, inputs []*checkpoint.Model) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%+v\n", buildVersion(), command, options)
	for _, m := range inputs {
		fmt.Fprintln(h, m.Identity())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// withHeaders adds the headers of GGUF files to a key: what they say of tokens comes from
// files beside the weights, which are no part of the identity of a model.
func withHeaders(key string, l *checkpoint.Layout) string {
	h := sha256.New()
	fmt.Fprintln(h, key)
	for _, f := range l.Files {
		if g := f.GGUF(); g != nil {
			h.Write(g.Header())
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// finishedStep is what the journal of an output keeps of a step.
type finishedStep struct {
	Step   int                 `json:"step"`
	Report engine.TensorReport `json:"report"`
}

// openSink makes the output of a plan or, if asked to, takes up the one that an
// interrupted run has left. It sets the options of the run that record which
// steps are finished and leave out those that were.
func (a *App) openSink(l *checkpoint.Layout, p *plan.Plan, key string, f *runFlags, o *engine.Options) (*checkpoint.Sink, error) {
	var sink *checkpoint.Sink
	var parts []checkpoint.Part
	var err error
	key = withHeaders(key, l)
	if f.resume {
		if sink, parts, err = checkpoint.Resume(f.fs(a), l, f.force, key, a.recordEvery()); err != nil {
			return nil, err
		}
	}
	if sink != nil {
		o.Done = a.agreed(sink, p, parts)
	} else {
		a.noteLeftovers(l.Path)
		if sink, err = checkpoint.Create(f.fs(a), l, f.force); err != nil {
			return nil, err
		}
		if err := sink.Journal(key, a.recordEvery()); err != nil {
			return nil, abort(sink, err)
		}
	}
	o.Finished = func(i int, r engine.TensorReport) error {
		note, err := json.Marshal(finishedStep{i, r})
		if err != nil {
			return nil // a norm beyond float64: the step will be done again
		}
		from, to := p.Steps[i].Extent()
		return sink.Finished(checkpoint.Part{Tensor: p.Steps[i].Write.Tensor, From: from, To: to, Note: note})
	}
	return sink, nil
}

// agreed returns the steps of the plan that are complete.
func (a *App) agreed(sink *checkpoint.Sink, p *plan.Plan, parts []checkpoint.Part) map[int]engine.TensorReport {
	done := make(map[int]engine.TensorReport)
	var bytes int64
	for _, part := range parts {
		var f finishedStep
		if json.Unmarshal(part.Note, &f) != nil || f.Step < 0 || f.Step >= len(p.Steps) {
			continue
		}
		s := &p.Steps[f.Step]
		from, to := s.Extent()
		if _, twice := done[f.Step]; twice || s.Write.Tensor != part.Tensor || from != part.From || to != part.To || !sink.Have(part) {
			continue
		}
		done[f.Step] = f.Report
		bytes += to - from
	}
	a.note("going on after %d of %d steps, %s", len(done), len(p.Steps), formatSize(bytes))
	return done
}

// abort removes what was begun and returns the first error.
func abort(sink *checkpoint.Sink, err error) error {
	if aerr := sink.Abort(); aerr != nil {
		return fmt.Errorf("%w (and removing the partial output: %v)", err, aerr)
	}
	return err
}

func (a *App) recordEvery() int64 {
	if a.RecordEvery > 0 {
		return a.RecordEvery
	}
	return recordEvery
}
