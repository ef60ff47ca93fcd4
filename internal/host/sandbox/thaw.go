package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// How often, and how far apart, a thaw is tried at a time.
const (
	thawTries = 3
	thawWait  = 100 * time.Millisecond
)

// thawPatience is how long a sandbox may stay in the middle of a pause or a snapshot because its
// guest does not answer: one that is short of memory or of CPU needs time, and giving up ends it.
const thawPatience = 5 * time.Minute

// silence is a machine that runs, with a guest that has not answered. It may have heard.
type silence struct{ error }

func (s silence) Unwrap() error { return s.error }

// thaw lets a frozen sandbox run: its machine, then its user processes. Idempotent.
func (m *Manager) thaw(ctx context.Context, s *Sandbox) error {
	in, _, _ := s.parts()
	if in == nil {
		return fault.New(fault.NotFound, "thaw", "sandbox", "nothing of it runs")
	}
	ctx = untilExit(ctx, in)
	for try := 1; ; try++ {
		err := s.tryThaw(ctx)
		if err == nil || try == thawTries {
			return explain(ctx, err)
		}
		select {
		case <-ctx.Done():
			return explain(ctx, err)
		case <-time.After(thawWait):
		}
	}
}

func (s *Sandbox) tryThaw(ctx context.Context) error {
	in, _, guest := s.parts()
	if err := in.Thaw(ctx); err != nil {
		return err
	}
	thaw := guest.Thaw
	if s.journal().Held != nil && s.rt.Capabilities().FreezesGuest {
		thaw = guest.ThawAt // its clock stood still too, and for long
	}
	err := thaw(ctx, s.journal().Generation)
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.DeadlineExceeded, fault.Canceled:
		return silence{err}
	default:
		return err
	}
}

// settleThawed writes down that a sandbox runs again after a snapshot, or a pause that was not
// committed.
func (m *Manager) settleThawed(s *Sandbox) {
	record := m.recordOf(s) // a capture that was begun may have given it another disk
	settle := func(j *journal) { j.State, j.Pending, j.Instance, j.Unthawed = Running, 0, record, time.Time{} }
	if err := s.update(false, settle); err != nil {
		// It runs, whatever its journal says; after a crash it is thawed again.
		m.log.Warn("that a sandbox runs on is not written down", "sandbox", s.ID(), "error", err)
		s.remember(settle)
	}
}

// unthawed is what becomes of a sandbox that could not be thawed for a cause. One whose guest
// alone is slow stays in the state that it is in, for whoever comes next or the collector to
// thaw; any other is failed for the reason, with its disk kept.
func (m *Manager) unthawed(ctx context.Context, s *Sandbox, cause error, reason string) error {
	in, _, _ := s.parts()
	if !m.mayThaw(s, in, cause) {
		return errors.Join(cause, m.fail(ctx, s, reason))
	}
	record := m.recordOf(s) // a capture that was begun may have given it another disk
	if err := s.update(false, func(j *journal) { j.Instance = record }); err != nil {
		m.log.Warn("a slow guest's instance is not written down", "sandbox", s.ID(), "error", err)
		s.remember(func(j *journal) { j.Instance = record })
	}
	m.log.Warn("sandbox's guest does not answer; it is thawed later", "sandbox", s.ID(), "error", cause)
	return &fault.Error{
		Kind: fault.DeadlineExceeded, Op: "thaw", Object: "sandbox " + s.ID(),
		Err: fmt.Errorf("its guest does not answer: %w", cause),
		Hint: fmt.Sprintf("it may be short of memory or CPU: it is asked again for %s; or remove it: roost rm %s",
			thawPatience, s.ID()),
	}
}

// mayThaw says whether a sandbox that could not be thawed may only need time, which begins with
// the first question. The next agent gives it as long again.
func (m *Manager) mayThaw(s *Sandbox, in runtime.Instance, cause error) bool {
	var silent silence
	if !errors.As(cause, &silent) || in.Stopped() != "" {
		return false
	}
	select {
	case <-in.Exited():
		return false
	default:
	}
	now := m.cfg.Clock()
	s.remember(func(j *journal) {
		if j.Unthawed.IsZero() {
			j.Unthawed = now
		}
	})
	return now.Sub(s.journal().Unthawed) < thawPatience
}
