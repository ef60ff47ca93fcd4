package cli

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
)

// meter counts the bytes of a copy and shows them as a bar once it takes over a second.
type meter struct {
	quiet bool
	out   lateWriter

	mu    sync.Mutex
	size  int64
	count int64
	bar   *progressbar.ProgressBar
}

// begin says that a copy starts; size 0 means that nobody knows.
func (m *meter) begin(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = size
	if !m.quiet {
		m.out.start = time.Now()
		m.bar = newBar(&m.out, size)
	}
}

// Write counts p; it makes a meter the side branch of a TeeReader.
func (m *meter) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count += int64(len(p))
	if m.bar == nil {
		return len(p), nil
	}
	if m.size <= 0 {
		m.bar.Describe(size(m.count))
	}
	_ = m.bar.Add(len(p))
	return len(p), nil
}

func newBar(w io.Writer, size int64) *progressbar.ProgressBar {
	if size <= 0 {
		size = -1
	}
	return progressbar.NewOptions64(size, progressbar.OptionSetWriter(w),
		progressbar.OptionShowBytes(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetWidth(30),
		progressbar.OptionUseIECUnits(true), progressbar.OptionSpinnerType(14), progressbar.OptionSetSpinnerChangeInterval(0), progressbar.OptionSetElapsedTime(true))
}

// lateWriter is stderr from one second on: the bar measures from the start but quick copies
// show none.
type lateWriter struct {
	start time.Time
	drawn atomic.Bool
}

func (w *lateWriter) Write(p []byte) (int, error) {
	if time.Since(w.start) < lineAfter {
		return len(p), nil
	}
	w.drawn.Store(true)
	return os.Stderr.Write(p)
}

func (m *meter) total() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// clear wipes the bar's line; the next Write draws it again.
func (m *meter) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.out.drawn.Load() {
		_, _ = io.WriteString(os.Stderr, "\r\x1b[K")
	}
}

// finish ends the display.
func (m *meter) finish() {
	m.clear()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bar = nil
}
