package qemu

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/roosthq/roost/internal/fault"
)

const (
	consoleLog = "console.log"
	// consoleHalf bounds each of the two files that are kept.
	consoleHalf = 512 << 10
	// tailSize is how much is kept at hand, for the reason of an exit.
	tailSize = 16 << 10
)

// console copies what the guest prints into the console files.
type console struct {
	path string
	conn net.Conn
	done chan struct{}

	mu   sync.Mutex
	file *os.File
	size int64
	tail tail
}

// openConsole appends to dir's console file what comes from conn.
func openConsole(dir string, conn net.Conn) (*console, error) {
	c := &console{path: filepath.Join(dir, consoleLog), conn: conn, done: make(chan struct{})}
	if err := c.open(); err != nil {
		return nil, err
	}
	go c.copy()
	return c, nil
}

func (c *console) open() error {
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

// copy ends with the connection. Text that cannot be written is lost and the guest goes on: a
// full disk must not stop a guest that prints.
func (c *console) copy() {
	defer close(c.done)
	buf := make([]byte, 8192)
	for {
		n, err := c.conn.Read(buf)
		c.write(buf[:n])
		if err != nil {
			break
		}
	}
	_ = c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		_ = c.file.Close()
	}
}

func (c *console) write(text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail.write(text)
	if c.size+int64(len(text)) > consoleHalf {
		c.rotate()
	}
	if c.file == nil {
		return
	}
	n, _ := c.file.Write(text)
	c.size += int64(n)
}

func (c *console) rotate() {
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
	if err := os.Rename(c.path, c.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return
	}
	_ = c.open()
}

func (c *console) recent() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tail.bytes()
}

func (c *console) close() {
	_ = c.conn.Close()
	<-c.done
}

// readConsole returns what is kept, oldest first.
func readConsole(path string) ([]byte, error) {
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

// tail keeps the last tailSize bytes written.
type tail struct{ kept []byte }

func (t *tail) write(p []byte) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
}

func (t *tail) bytes() []byte { return append([]byte(nil), t.kept...) }

// ReadConsole implements vmm.Driver.
func (d *Driver) ReadConsole(dir string) ([]byte, error) {
	return readConsole(filepath.Join(dir, consoleLog))
}
