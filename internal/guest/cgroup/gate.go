package cgroup

import (
	"context"
	"sync"

	"github.com/roosthq/roost/internal/fault"
)

// gate holds starts back while the tree is frozen.
type gate struct {
	mu      sync.Mutex
	closed  bool
	epoch   int
	active  int
	changed chan struct{} // closed and replaced at every change
}

func (g *gate) enter(ctx context.Context) (func(), error) {
	g.mu.Lock()
	epoch := g.epoch
	for g.closed {
		if err := g.wait(ctx); err != nil {
			g.mu.Unlock()
			return nil, fault.Wrap(err, "wait for", "the sandbox to be thawed")
		}
		if g.epoch != epoch {
			g.mu.Unlock()
			return nil, fault.New(fault.Unavailable, "start process", "", "the sandbox was restored while the request waited")
		}
	}
	g.active++
	g.mu.Unlock()
	return sync.OnceFunc(g.leave), nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active--
	g.broadcast()
}

// close waits for the starts under way; on an error the gate is open again.
func (g *gate) close(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.closed
	g.closed = true
	for g.active > 0 {
		if err := g.wait(ctx); err != nil {
			g.closed = was
			g.broadcast()
			return err
		}
	}
	return nil
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
	g.broadcast()
}

func (g *gate) abort() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epoch++
	g.broadcast()
}

// wait releases the lock until something changes.
func (g *gate) wait(ctx context.Context) error {
	changed := g.changed
	g.mu.Unlock()
	defer g.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) broadcast() {
	close(g.changed)
	g.changed = make(chan struct{})
}
