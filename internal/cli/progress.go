package cli

import (
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	// spinAfter keeps quick answers from flashing a spinner.
	spinAfter = 300 * time.Millisecond
	// lineAfter is when work without a terminal is worth a line.
	lineAfter = time.Second
)

var spinner = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

// busy tells on stderr what is under way: a spinner on a terminal, otherwise one plain line a
// step once the work takes over a second. A nil busy is silent.
type busy struct {
	w     *os.File
	tty   bool
	start time.Time
	done  chan struct{}
	ended sync.WaitGroup

	mu   sync.Mutex
	text string
}

func startBusy(quiet bool, text string) *busy {
	if quiet {
		return nil
	}
	b := &busy{w: os.Stderr, tty: isTerminal(os.Stderr), start: time.Now(), done: make(chan struct{}), text: text}
	b.ended.Go(b.loop)
	return b
}

// step says what is being done now.
func (b *busy) step(text string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = printable(text)
}

// stop ends the display and clears the spinner's line.
func (b *busy) stop() {
	if b == nil {
		return
	}
	close(b.done)
	b.ended.Wait()
}

func (b *busy) loop() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	drawn, last := 0, ""
	for {
		select {
		case <-b.done:
			if drawn > 0 {
				_, _ = fmt.Fprint(b.w, "\r\x1b[K")
			}
			return
		case <-tick.C:
		}
		b.mu.Lock()
		text := b.text
		b.mu.Unlock()
		passed := time.Since(b.start)
		switch {
		case b.tty && passed >= spinAfter:
			_, _ = fmt.Fprintf(b.w, "\r\x1b[K%c %s (%.0f s)", spinner[drawn%len(spinner)], text, passed.Seconds())
			drawn++
		case !b.tty && passed >= lineAfter && text != last:
			_, _ = fmt.Fprintf(b.w, "roost: %s …\n", text)
			last = text
		}
	}
}
