package sandbox

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/fault"
)

const (
	idleTick = time.Second
	// pausesAtOnce bounds how many idle sandboxes are paused at the same time.
	pausesAtOnce = 4
)

// pauseIdle pauses every running sandbox that was idle for its timeout.
func (m *Manager) pauseIdle(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(pausesAtOnce)
	for _, s := range m.list() {
		j := s.journal()
		if j.State != Running || j.IdleTimeout == 0 || !m.idle(s, j.IdleTimeout) {
			continue
		}
		group.Go(func() error { return m.pauseIfIdle(ctx, s, j.IdleTimeout) })
	}
	return group.Wait()
}

// idle says whether nothing was seen of a sandbox for as long. A request in flight is
// activity: a command that is being waited for is not idle, however quiet.
func (m *Manager) idle(s *Sandbox, limit time.Duration) bool {
	return s.inFlight.Load() == 0 && m.cfg.Clock().Sub(time.Unix(0, s.activeAt.Load())) >= limit
}

// pauseIfIdle asks the guest, which also sees output that nobody is reading.
func (m *Manager) pauseIfIdle(ctx context.Context, s *Sandbox, limit time.Duration) error {
	if _, _, guest := s.parts(); guest != nil {
		quiet, err := guest.IdleFor(ctx)
		if err == nil && quiet < limit {
			s.touch(m.cfg.Clock().Add(-quiet))
			return nil
		}
	}
	if !m.idle(s, limit) {
		return nil
	}
	_, err := m.Pause(ctx, Operation{}, s.ID(), "idle for "+limit.String())
	if fault.Is(err, fault.FailedPrecondition) || errors.Is(err, context.Canceled) {
		return nil // it changed meanwhile
	}
	if err != nil {
		// Do not try again every second: a full disk, say, stays full for a while.
		s.touch(m.cfg.Clock())
	}
	return err
}
