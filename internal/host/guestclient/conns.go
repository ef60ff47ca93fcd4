package guestclient

import (
	"context"
	"net"
	"sync"

	"github.com/roosthq/roost/internal/fault"
)

// conns are a client's open connections. A guest that was killed says no goodbye: what waits
// for it would wait for minutes, and keep the network namespace of its slot.
type conns struct {
	dial DialFunc
	// ended is closed by end, for who is still dialling.
	ended chan struct{}

	mu   sync.Mutex
	open map[*conn]struct{}
}

func newConns(dial DialFunc) *conns {
	return &conns{dial: dial, ended: make(chan struct{}), open: map[*conn]struct{}{}}
}

func (a *conns) over() bool {
	select {
	case <-a.ended:
		return true
	default:
		return false
	}
}

func errOver() error {
	return fault.New(fault.Unavailable, "reach", "guest", "its sandbox does not run any more")
}

// conn is a connection that takes itself off the list.
type conn struct {
	net.Conn
	all *conns
}

func (c *conn) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}

func (a *conns) connect(ctx context.Context, _, _ string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dialled := make(chan struct{})
	defer close(dialled)
	go func() {
		select {
		case <-a.ended:
			cancel()
		case <-dialled:
		}
	}()
	raw, err := a.dial(ctx, Port)
	if err != nil {
		if a.over() {
			return nil, errOver()
		}
		return nil, err
	}
	c := &conn{Conn: raw, all: a}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over() {
		_ = raw.Close()
		return nil, errOver()
	}
	a.open[c] = struct{}{}
	return c, nil
}

// end closes every connection and refuses new ones.
func (a *conns) end() {
	a.mu.Lock()
	if !a.over() {
		close(a.ended)
	}
	open := a.open
	a.open = map[*conn]struct{}{}
	a.mu.Unlock()
	for c := range open {
		// Without linger: the kernel would go on for minutes to tell a guest that is gone.
		if tcp, ok := c.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Conn.Close()
	}
}
