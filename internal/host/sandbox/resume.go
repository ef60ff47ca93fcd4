package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// Resume wakes a paused sandbox; a running one is awake already. A failed resume leaves the
// paused state as it was.
func (m *Manager) Resume(ctx context.Context, op Operation, id string, idle *time.Duration) (View, error) {
	s, err := m.lookup(id)
	if err != nil {
		return View{}, err
	}
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return View{}, err
	}
	defer leave()
	j := s.journal()
	if j.did(op.ID) || j.State == Running {
		return s.View(), nil
	}
	if err := errors.Join(fence(j, op), need(id, j.State, Paused, "resume")); err != nil {
		return View{}, err
	}
	if err := m.resume(ctx, s, op, idle); err != nil {
		return View{}, fault.Wrap(err, "resume", "sandbox "+id)
	}
	return s.View(), nil
}

func (m *Manager) resume(ctx context.Context, s *Sandbox, op Operation, idle *time.Duration) (err error) {
	var undos undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undos.Rollback(ctx))
		}
	}()
	capture, man, err := readCapture(s.dir.Capture(s.journal().Capture))
	if err != nil {
		return err
	}
	clock := newStopwatch()
	if capture, err = m.compact(ctx, s, capture, man); err != nil {
		return err
	}
	clock.mark("read")
	undos.Push("mark paused", func(context.Context) error {
		return s.update(true, func(j *journal) {
			j.State, j.ControlToken = Paused, man.ControlToken
			// The next try must not meet a leftover of this one.
			j.DiskIndex++
		})
	})
	if err := s.update(false, func(j *journal) { j.State = Resuming }); err != nil {
		return err
	}
	src := source{capture: &capture, controlToken: man.ControlToken}
	if err := m.start(ctx, s, src, &undos, clock); err != nil {
		return err
	}
	if err := failpoint.Hit("sandbox.resume.started"); err != nil {
		return err
	}
	if idle != nil {
		if err := s.update(false, func(j *journal) { j.IdleTimeout = *idle }); err != nil {
			return err
		}
	}
	return m.settleRunning(s, op, clock, &undos)
}

// compact merges a disk that has become too deep to open, and publishes the capture anew.
func (m *Manager) compact(ctx context.Context, s *Sandbox, c runtime.Capture, man manifest) (runtime.Capture, error) {
	record, changed, err := m.cfg.Runtime.Compact(ctx, s.spec(m), c)
	if err != nil || !changed {
		return c, err
	}
	man.Record = record
	if err := writeManifest(c.Dir, man); err != nil {
		return c, err
	}
	c.Record = record
	return c, m.dropUnused(s)
}
