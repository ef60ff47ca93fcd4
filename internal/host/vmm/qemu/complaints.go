package qemu

import (
	"bytes"
	"os"
	"sync"

	"github.com/roosthq/roost/internal/host/vmm/console"
)

// complaints collects the end of what QEMU prints on stdout and stderr. It is a pipe, so QEMU
// can fill no disk; when the agent is gone its writes fail and it goes on.
type complaints struct {
	pipe *os.File
	done chan struct{}

	mu   sync.Mutex
	tail console.Tail
}

// openComplaints returns the collector and the end that QEMU inherits.
func openComplaints() (*complaints, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	c := &complaints{pipe: r, done: make(chan struct{})}
	go c.copy()
	return c, w, nil
}

func (c *complaints) copy() {
	defer close(c.done)
	buf := make([]byte, 4096)
	for {
		n, err := c.pipe.Read(buf)
		c.mu.Lock()
		c.tail.Write(buf[:n])
		c.mu.Unlock()
		if err != nil {
			_ = c.pipe.Close()
			return
		}
	}
}

// text is one line for an error.
func (c *complaints) text() string {
	if c == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	const most = 600
	line := bytes.ReplaceAll(bytes.TrimSpace(c.tail.Bytes()), []byte("\n"), []byte("; "))
	if len(line) > most {
		line = append([]byte("…"), line[len(line)-most:]...)
	}
	return string(line)
}

func (c *complaints) close() {
	if c != nil {
		_ = c.pipe.Close()
		<-c.done
	}
}
