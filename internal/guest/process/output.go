package process

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Buffers start small: most commands say little, and every page touched after a restore is a
// private page of the sandbox. A full read asks for the large size, a pipe's capacity.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

// Stream names where output came from.
type Stream int

// The streams.
const (
	Stdout Stream = iota
	Stderr
	Terminal
)

// Output is a piece of output.
type Output struct {
	Stream Stream
	Data   []byte
}

// Subscription is one reader of a process's output.
type Subscription struct {
	process *Process
	out     chan Output
	gone    chan struct{}
	leave   sync.Once
}

// Output is closed when the process has ended and everything was received.
func (s *Subscription) Output() <-chan Output { return s.out }

// Detach stops the subscription; the process no longer waits for it.
func (s *Subscription) Detach() {
	s.leave.Do(func() {
		close(s.gone)
		s.process.mu.Lock()
		defer s.process.mu.Unlock()
		delete(s.process.subs, s)
	})
}

// Attach subscribes to new output, after the kept tail when replay is set.
func (p *Process) Attach(replay bool) *Subscription { return p.attach(replay) }

func (p *Process) attach(replay bool) *Subscription {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []Output
	if replay {
		kept = p.tail.pieces
	}
	sub := &Subscription{process: p, gone: make(chan struct{}), out: make(chan Output, 4+len(kept))}
	for _, o := range kept {
		sub.out <- o
	}
	if p.ended {
		close(sub.out)
		return sub
	}
	p.subs[sub] = struct{}{}
	return sub
}

// pump reads a stream to its end and publishes it.
func (p *Process) pump(stream Stream, from *os.File) {
	buf := make([]byte, smallBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			p.publish(Output{stream, bytes.Clone(buf[:n])})
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.drain(stream, from)
			return
		}
		if err != nil {
			return // end of file, or EIO: the last slave of a terminal was closed
		}
		if n == len(buf) && n < largeBuffer {
			buf = make([]byte, largeBuffer)
		}
	}
}

// drain takes what is in the pipe without waiting: a slow reader may have used up the time,
// and what the process wrote before its exit is at most a pipe's capacity.
func (p *Process) drain(stream Stream, from *os.File) {
	_ = from.SetReadDeadline(time.Time{})
	conn, err := from.SyscallConn()
	if err != nil {
		return
	}
	for left := capacity(conn); left > 0; {
		buf := make([]byte, min(left, largeBuffer))
		n := 0
		rerr := conn.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), buf)
			return true
		})
		if rerr != nil || err != nil || n <= 0 {
			return
		}
		p.publish(Output{stream, buf[:n]})
		left -= n
	}
}

// capacity of the pipe; the process may have enlarged it. A terminal holds far less.
func capacity(conn interface{ Control(func(uintptr)) error }) int {
	size := largeBuffer
	_ = conn.Control(func(fd uintptr) {
		if n, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
			size = n
		}
	})
	return size
}

// publish hands a piece to every subscriber, waiting for slow ones, or keeps it.
func (p *Process) publish(o Output) {
	p.manager.activity.Touch()
	p.mu.Lock()
	subs := make([]*Subscription, 0, len(p.subs))
	for sub := range p.subs {
		subs = append(subs, sub)
	}
	if len(subs) == 0 {
		p.tail.add(o)
	}
	p.mu.Unlock()
	for _, sub := range subs {
		select {
		case sub.out <- o:
		case <-sub.gone:
		}
	}
}

// tailMax bounds what is kept of the output that nobody reads.
const tailMax = 256 << 10

// tail is the last output, oldest first.
type tail struct {
	pieces []Output
	size   int
}

func (t *tail) add(o Output) {
	t.pieces = append(t.pieces, o)
	t.size += len(o.Data)
	drop := 0
	for t.size > tailMax && drop < len(t.pieces)-1 {
		t.size -= len(t.pieces[drop].Data)
		drop++
	}
	// A copy frees what was dropped: a slice of the old array would keep it.
	if drop > 0 {
		t.pieces = append([]Output(nil), t.pieces[drop:]...)
	}
}
