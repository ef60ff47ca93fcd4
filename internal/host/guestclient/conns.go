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

	mu     sync.Mutex
	open   map[*conn]struct{}
	closed bool
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
	raw, err := a.dial(ctx, Port)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, all: a}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		_ = raw.Close()
		return nil, fault.New(fault.Unavailable, "reach", "guest", "its sandbox does not run any more")
	}
	a.open[c] = struct{}{}
	return c, nil
}

// end closes every connection and refuses new ones.
func (a *conns) end() {
	a.mu.Lock()
	a.closed = true
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
