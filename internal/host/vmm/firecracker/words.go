package firecracker

import (
	"bytes"
	"regexp"
	"sync"

	"github.com/roosthq/roost/internal/host/vmm/console"
)

// words listens to the console for what a guest's kernel says last: Firecracker itself does not
// tell why a guest ended, nor that it did when it only halts.
type words struct {
	mu   sync.Mutex
	line []byte
	last string
	// off is closed when the guest has halted.
	off    chan struct{}
	halted sync.Once
	// spoke is closed when the guest's kernel has printed its first line.
	spoke chan struct{}
	first sync.Once
}

func newWords() *words { return &words{off: make(chan struct{}), spoke: make(chan struct{})} }

const (
	maxLine     = 512
	guestOff    = "guest shut down"
	guestReboot = "guest rebooted"
)

var (
	// Kernels without a way to power off say that they halt.
	offLine    = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?reboot: (Power down|.*System halted)`)
	stopLine   = regexp.MustCompile(`^` + logHead + `.*exit reason on vcpu run: (\w+)`)
	rebootLine = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?reboot: Restarting system`)
)

// hear takes what is printed, in whatever pieces it comes.
func (w *words) hear(text []byte) {
	for len(text) > 0 {
		part, rest, ended := bytes.Cut(text, []byte("\n"))
		w.line = append(w.line, part[:min(len(part), max(0, maxLine-len(w.line)))]...)
		if ended {
			w.understand(w.line)
			w.line = w.line[:0]
		}
		text = rest
	}
}

func (w *words) understand(line []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	why, panicked := console.Panic(line)
	switch {
	case panicked && !bytes.Contains(line, []byte("end Kernel panic")):
		w.last = why
	case bytes.Contains(line, []byte(probeMark)):
		w.first.Do(func() { close(w.spoke) })
	case stopLine.Match(line):
		w.last = "guest crashed: its CPU stopped (" + string(stopLine.FindSubmatch(line)[1]) + ")"
	case rebootLine.Match(line):
		w.last = guestReboot
	case offLine.Match(line):
		w.last = guestOff
		w.halted.Do(func() { close(w.off) })
	}
}

// reason is why the guest ended, by its own words; "" when it said nothing.
func (w *words) reason() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func lastLine(text []byte) []byte {
	text = bytes.TrimSpace(text)
	return text[bytes.LastIndexByte(text, '\n')+1:]
}
