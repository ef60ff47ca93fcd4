package gvisor

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	consoleFIFO = "console"
	consoleLog  = "console.log"
	// consoleHalf bounds each of the two files that are kept.
	consoleHalf = 512 << 10
	// tailSize is how much is kept at hand, for the reason of an exit.
	tailSize = 4 << 10
)

// console copies what a sandbox prints into files. The sandbox holds a FIFO for reading and
// writing, so no write fails when the agent is gone; the pipe then keeps pipeSize bytes, and
// whoever prints more waits for the next agent. No file of the host can be filled that way.
//
// Nor by much at once: reading and writing is this agent's work, which no limit of the sandbox
// bounds. A sandbox that prints more than a burst waits until it is let.
type console struct {
	pipe *os.File
	done chan struct{}
	// hurry is closed when nobody prints any more, and nobody need wait.
	hurry func()
	pace  pace
	log   ring
}

const (
	pipeSize = 1 << 20
	// consoleRate is what a sandbox may print in a second, and consoleBurst for how many seconds'
	// worth it need not wait.
	consoleRate  = 1 << 20
	consoleBurst = time.Second
)

// pace makes the reader as slow as a sandbox may print.
type pace struct {
	over <-chan struct{}
	last time.Time
	debt time.Duration
}

// wait is for n bytes that were read.
func (p *pace) wait(n int) {
	now := time.Now()
	p.debt = max(0, p.debt-now.Sub(p.last)) + time.Duration(n)*time.Second/consoleRate
	p.last = now
	if p.debt <= consoleBurst {
		return
	}
	select {
	case <-p.over:
	case <-time.After(p.debt - consoleBurst):
	}
}

// newConsole makes the FIFO and returns, besides, the sandbox's end.
func newConsole(runDir string) (*console, *os.File, error) {
	path := filepath.Join(runDir, consoleFIFO)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fault.Wrap(err, "replace", "console")
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, fault.Wrap(err, "make", "console")
	}
	// Blocking, as a program expects its output to be; os.OpenFile would change that.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fault.Wrap(err, "open", "console")
	}
	theirs := os.NewFile(uintptr(fd), path)
	// Fewer bytes do where the kernel refuses.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	c, err := openConsole(runDir)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return c, theirs, nil
}

// openConsole reads what a running sandbox prints.
func openConsole(runDir string) (*console, error) {
	pipe, err := os.OpenFile(filepath.Join(runDir, consoleFIFO), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.Wrap(err, "open", "console")
	}
	over := make(chan struct{})
	c := &console{
		pipe: pipe, done: make(chan struct{}), hurry: sync.OnceFunc(func() { close(over) }),
		pace: pace{over: over}, log: ring{path: filepath.Join(runDir, consoleLog)},
	}
	go c.copy()
	return c, nil
}

// copy ends with the sandbox, the last that holds the FIFO for writing, or with close. Text that
// cannot be written is lost and the sandbox goes on.
func (c *console) copy() {
	defer close(c.done)
	buf := make([]byte, 8192)
	for {
		n, err := c.pipe.Read(buf)
		c.log.write(buf[:n])
		if err != nil {
			break
		}
		c.pace.wait(n)
	}
	c.log.close()
}

func (c *console) close() {
	c.hurry()
	_ = c.pipe.Close()
	<-c.done
}

// ring is the last MiB of text in two files, and the end of it at hand.
type ring struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
	tail []byte
}

func (r *ring) write(text []byte) {
	if len(text) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tail = append(r.tail, text...)
	if over := len(r.tail) - tailSize; over > 0 {
		r.tail = append(r.tail[:0], r.tail[over:]...)
	}
	if r.file == nil && r.open() != nil {
		return
	}
	if r.size+int64(len(text)) > consoleHalf && r.turn() != nil {
		return
	}
	n, _ := r.file.Write(text)
	r.size += int64(n)
}

func (r *ring) open() error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file, r.size = f, info.Size()
	return nil
}

// turn makes the current file the older one.
func (r *ring) turn() error {
	_ = r.file.Close()
	r.file = nil
	if err := os.Rename(r.path, r.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return r.open()
}

func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
}

func (r *ring) recent() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]byte(nil), r.tail...)
}

// readConsole returns what is kept, oldest first.
func readConsole(runDir string) ([]byte, error) {
	var all []byte
	for _, name := range []string{consoleLog + ".1", consoleLog} {
		part, err := readEnd(filepath.Join(runDir, name), consoleHalf)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fault.Wrap(err, "read", "console file")
		}
		all = append(all, part...)
	}
	return all, nil
}

// readEnd reads at most the last n bytes of a file.
func readEnd(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-n), n))
}
