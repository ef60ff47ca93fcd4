// Package console keeps what a guest prints: at most 1 MiB on disk, in two files that take turns,
// and its end at hand.
//
//	console.log    newest half of the console, kept after the VM's end
//	console.log.1  the half before it
//
// A Console reads until its source ends or is closed. Text that cannot be written is lost and the
// guest goes on: a full disk must not stop a guest that prints.
package console

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/roosthq/roost/internal/fault"
)

const (
	// File is the newest half's name in a VM's directory.
	File = "console.log"
	// half bounds each of the two files that are kept.
	half = 512 << 10
)

// Console copies what the guest prints into the console files.
type Console struct {
	path  string
	from  io.ReadCloser
	watch func(text []byte)
	done  chan struct{}

	mu   sync.Mutex
	file *os.File
	size int64
	tail Tail
}

// Open appends to dir's console file what comes from a source, which is the Console's from then on.
// watch, which may be nil, is called with all that is read, and must not wait.
func Open(dir string, from io.ReadCloser, watch func(text []byte)) (*Console, error) {
	if watch == nil {
		watch = func([]byte) {}
	}
	c := &Console{path: filepath.Join(dir, File), from: from, watch: watch, done: make(chan struct{})}
	if err := c.open(); err != nil {
		return nil, err
	}
	go c.copy()
	return c, nil
}

func (c *Console) open() error {
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fault.Wrap(err, "open", "console file")
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fault.Wrap(err, "open", "console file"), f.Close())
	}
	c.file, c.size = f, info.Size()
	return nil
}

// copy ends with the source.
func (c *Console) copy() {
	defer close(c.done)
	buf := make([]byte, 8192)
	for {
		n, err := c.from.Read(buf)
		c.write(buf[:n])
		c.watch(buf[:n])
		if err != nil {
			break
		}
	}
	_ = c.from.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		_ = c.file.Close()
	}
}

func (c *Console) write(text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail.Write(text)
	if c.size+int64(len(text)) > half {
		c.rotate()
	}
	if c.file == nil {
		return
	}
	n, _ := c.file.Write(text)
	c.size += int64(n)
}

func (c *Console) rotate() {
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
	if err := os.Rename(c.path, c.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return
	}
	_ = c.open()
}

// Recent is the end of what was printed, of what this Console has read.
func (c *Console) Recent() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tail.Bytes()
}

// Done is closed when all was read.
func (c *Console) Done() <-chan struct{} { return c.done }

// Close lets go of the source and waits for the reader.
func (c *Console) Close() {
	_ = c.from.Close()
	<-c.done
}

// Read returns what is kept in a VM's directory, oldest first, also of a VM that is gone.
func Read(dir string) ([]byte, error) {
	path := filepath.Join(dir, File)
	var all []byte
	for _, p := range []string{path + ".1", path} {
		part, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fault.Wrap(err, "read", "console file")
		}
		all = append(all, part...)
	}
	return all, nil
}
