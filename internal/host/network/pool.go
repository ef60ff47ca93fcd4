package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// retryPool is how long a failed refill waits; a freed slot wakes it earlier.
const retryPool = 5 * time.Second

// keepPool fills the pool whenever it is asked to, until ctx ends.
func (m *Manager) keepPool(ctx context.Context) {
	for {
		var retry <-chan time.Time
		err := m.fillPool(ctx)
		if err != nil && ctx.Err() == nil {
			m.log.Warn("make a slot for the pool", "error", err)
			retry = time.After(retryPool)
		}
		if err == nil && m.filled != nil {
			m.filled()
		}
		select {
		case <-ctx.Done():
			return
		case <-m.refill:
		case <-retry:
		}
	}
}

func (m *Manager) fillPool(ctx context.Context) error {
	for ctx.Err() == nil && m.poolLen() < m.opt.PoolSize {
		s, err := m.makeNext(ctx, m.opt.PoolPort)
		if err != nil {
			return err
		}
		m.mu.Lock()
		m.pool = append(m.pool, s)
		m.mu.Unlock()
	}
	return ctx.Err()
}

func (m *Manager) poolLen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pool)
}

func (m *Manager) popPool(kind PortKind) *Slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	if kind != m.opt.PoolPort || len(m.pool) == 0 {
		return nil
	}
	s := m.pool[0]
	m.pool = m.pool[1:]
	return s
}

func (m *Manager) wakePool() {
	select {
	case m.refill <- struct{}{}:
	default:
	}
}

// makeNext makes a slot with the lowest number that is free.
func (m *Manager) makeNext(ctx context.Context, kind PortKind) (*Slot, error) {
	for {
		n, err := m.reserveNumber()
		if err != nil {
			return nil, err
		}
		s, err := m.make(ctx, n, kind)
		if err == nil {
			return s, nil
		}
		m.freeNumber(n, errors.Is(err, errTaken))
		if !errors.Is(err, errTaken) {
			return nil, fault.Wrap(err, "make", fmt.Sprintf("slot %d", n))
		}
	}
}

func (m *Manager) reserveNumber() (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	limit := capacity(m.subnet)
	for n := 1; n <= limit; n++ {
		if m.busy[n] || m.occupied[n] {
			continue
		}
		// A name without a holder here: a slot that is not adopted yet, or a left-over.
		if exists(m.host.namespacePath(n)) || exists(m.host.portPath(n)) {
			continue
		}
		m.busy[n] = true
		return n, nil
	}
	return 0, fault.New(fault.ResourceExhausted, "make", "slot",
		fmt.Sprintf("all %d slots of %s are in use", limit, m.subnet)).WithHint("destroy or pause sandboxes")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (m *Manager) freeNumber(n int, occupied bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.busy, n)
	if occupied {
		m.occupied[n] = true
	}
}
