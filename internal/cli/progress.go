package cli

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progress shows how far a run is: a bar on a terminal, a line now and then
// elsewhere, JSON lines with --json. It writes to stderr only.
type progress interface {
	Start(totalBytes int64)
	Advance(bytes int64, tensor string)
	Finish()
}

// newProgress picks the form by where stderr goes. Doing is what goes on.
func (a *App) newProgress(doing string) progress {
	every, err := a.progressInterval()
	if a.quiet || err != nil {
		return noProgress{}
	}
	if f, ok := a.Stderr.(*os.File); ok && !a.json && hasWidth(f) && a.Getenv("TERM") != "dumb" {
		return &barProgress{app: a, doing: doing}
	}
	if every == 0 {
		return noProgress{}
	}
	return &lineProgress{app: a, doing: doing, every: every}
}

// hasWidth reports whether a file is a terminal that a status line fits on. The
// terminals of some build machines are 0 columns wide.
func hasWidth(f *os.File) bool {
	columns, _, err := term.GetSize(int(f.Fd()))
	return err == nil && columns > 0
}

// progressInterval is the time between lines of progress, 0 for none.
func (a *App) progressInterval() (time.Duration, error) {
	text := a.Getenv("LORATOOL_PROGRESS")
	if text == "" {
		return 30 * time.Second, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds >= 0 && seconds <= 1e9) {
		return 0, usagef("LORATOOL_PROGRESS: %q is not a number of seconds", text)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

type noProgress struct{}

func (noProgress) Start(int64)           {}
func (noProgress) Advance(int64, string) {}
func (noProgress) Finish()               {}

// barProgress is one status line: bytes, rate, time left and the tensor.
type barProgress struct {
	app    *App
	doing  string
	bars   *mpb.Progress
	bar    *mpb.Bar
	tensor atomic.Pointer[string]
}

func (p *barProgress) Start(total int64) {
	p.bars = mpb.New(mpb.WithOutput(p.app.Stderr), mpb.WithWidth(30), mpb.WithRefreshRate(200*time.Millisecond))
	p.bar = p.bars.AddBar(total,
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(p.doing+" "), decor.CountersKibiByte("% .1f / % .1f")),
		mpb.AppendDecorators(
			decor.AverageSpeed(decor.SizeB1024(0), " % .1f"),
			decor.Name("  "), decor.AverageETA(decor.ET_STYLE_GO),
			decor.Any(func(decor.Statistics) string {
				if name := p.tensor.Load(); name != nil {
					return "  " + oneLine(*name)
				}
				return ""
			}),
		))
}

func (p *barProgress) Advance(n int64, tensor string) {
	p.tensor.Store(&tensor)
	p.bar.IncrInt64(n)
}

func (p *barProgress) Finish() {
	if p.bar == nil {
		return
	}
	p.bar.Abort(true)
	p.bars.Wait()
}

// lineProgress writes a line at most every so often; a short run writes none.
type lineProgress struct {
	app   *App
	doing string
	every time.Duration

	total int64
	done  atomic.Int64
	start time.Time
	mu    sync.Mutex
	last  time.Time
}

func (p *lineProgress) Start(total int64) {
	p.total, p.start = total, time.Now()
	p.last = p.start
}

func (p *lineProgress) Advance(n int64, tensor string) {
	done := p.done.Add(n)
	if !p.mu.TryLock() {
		return
	}
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.last) < p.every {
		return
	}
	p.last = now
	rate := float64(done) / now.Sub(p.start).Seconds()
	left := time.Duration(float64(p.total-done) / rate * float64(time.Second)).Round(time.Second)
	if p.app.json {
		p.app.jsonLine(progressJSON{"progress", p.doing, done, p.total, number(math.Round(rate)), number(left.Seconds())})
		return
	}
	fmt.Fprintf(p.app.Stderr, "loratool: %s: %s of %s, %s/s, %s left, at %s\n", p.doing,
		formatSize(done), formatSize(p.total), formatSize(int64(rate)), left, oneLine(tensor))
}

type progressJSON struct {
	Type        string `json:"message_type"`
	Doing       string `json:"doing"`
	Bytes       int64  `json:"bytes"`
	TotalBytes  int64  `json:"total_bytes"`
	Rate        number `json:"bytes_per_second"`
	SecondsLeft number `json:"seconds_left"`
}

func (p *lineProgress) Finish() {}
