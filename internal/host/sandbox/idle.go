package sandbox

import (
	"context"
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
		if j.State != Running || j.IdleTimeout == 0 || s.gone() != nil || !m.idleNow(s, j.IdleTimeout) {
			continue
		}
		group.Go(func() error { return m.pauseIfIdle(ctx, s, j.IdleTimeout) })
	}
	return group.Wait()
}

// idle says whether nothing was seen of a sandbox for as long. A request in flight is
// activity: a command that is being waited for is not idle, however quiet. s.mu is held.
func (m *Manager) idle(s *Sandbox, limit time.Duration) bool {
	return s.inFlight == 0 && m.cfg.Clock().Sub(*s.activeAt.Load()) >= limit
}

// idleNow is idle for who does not hold s.mu.
func (m *Manager) idleNow(s *Sandbox, limit time.Duration) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return m.idle(s, limit)
}

// pauseIfIdle asks the guest, which also sees output that nobody is reading.
func (m *Manager) pauseIfIdle(ctx context.Context, s *Sandbox, limit time.Duration) error {
	// One that is held has not answered since, and does nothing.
	if _, _, guest := s.parts(); guest != nil && s.journal().Held == nil {
		quiet, err := guest.IdleFor(ctx)
		if err != nil {
			return m.notAnswered(ctx, s, err)
		}
		if quiet < limit {
			s.touch(m.cfg.Clock().Add(-quiet))
			return nil
		}
	}
	_, err := m.pauseIf(ctx, Operation{}, s.ID(), PauseOptions{Reason: "idle for " + limit.String()}, func(s *Sandbox) bool {
		return s.j.IdleTimeout == limit && m.idle(s, limit)
	})
	if err == nil || ctx.Err() != nil || fault.Is(err, fault.FailedPrecondition) || fault.Is(err, fault.NotFound) || fault.Is(err, fault.Aborted) {
		return nil //nolint:nilerr // paused, or it changed meanwhile
	}
	// Do not try again every second: a full disk, say, stays full for a while.
	s.touch(m.cfg.Clock())
	return err
}

// notAnswered is a guest that does not say whether it is idle: it may be all too busy, and is
// asked again after as long. One that was paused or ended meanwhile is no error.
func (m *Manager) notAnswered(ctx context.Context, s *Sandbox, err error) error {
	if ctx.Err() != nil || s.journal().State != Running {
		return nil //nolint:nilerr // it is nobody's any more
	}
	s.touch(m.cfg.Clock())
	return fault.Wrap(err, "ask for idleness of", "sandbox "+s.ID())
}
