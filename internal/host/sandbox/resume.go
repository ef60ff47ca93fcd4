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

// ResumeOptions of one resume.
type ResumeOptions struct {
	// Idle, when it is not nil, is the new idle timeout.
	Idle *time.Duration
	// Cold boots from the disk instead of restoring memory; it is legal for failed and lost
	// sandboxes too. The view's reason says what it started from.
	Cold bool
}

// Resume wakes a paused sandbox; a running one is awake already. A failed resume leaves the
// paused state as it was.
func (m *Manager) Resume(ctx context.Context, op Operation, id string, opts ResumeOptions) (View, error) {
	idle := opts.Idle
	if idle != nil {
		if err := checkIdle("resume", *idle); err != nil {
			return View{}, err
		}
	}
	s, ctx, leave, err := m.enter(ctx, id)
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
		err = classify(explain(ctx, err), "the sandbox stays paused: ")
		return View{}, fault.Wrap(err, "resume", "sandbox "+id)
	}
	return s.View(), nil
}

func (m *Manager) resume(ctx context.Context, s *Sandbox, op Operation, idle *time.Duration) error {
	capture, man, err := readCapture(s.dir.Capture(s.journal().Capture))
	if err != nil {
		return err
	}
	clock := newStopwatch()
	if capture, err = m.compact(ctx, s, capture, man); err != nil {
		return err
	}
	clock.mark("read")
	if err := s.update(false, func(j *journal) { j.State = Resuming }); err != nil {
		return err
	}
	err = m.start(ctx, s, source{capture: &capture, controlToken: man.ControlToken}, clock)
	if err == nil {
		err = failpoint.Hit("sandbox.resume.started")
	}
	if err == nil {
		err = m.settleRunning(s, op, clock, func(j *journal) {
			if idle != nil {
				j.IdleTimeout = *idle
			}
		})
	}
	if err == nil {
		return nil
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return errors.Join(err, m.abandonResume(ctx, s))
}

// abandonResume undoes a resume: the capture is as it was, and what was made over it goes.
func (m *Manager) abandonResume(ctx context.Context, s *Sandbox) error {
	if err := m.end(ctx, s); err != nil {
		return err
	}
	if err := s.rt.Discard(ctx, s.spec(m)); err != nil {
		return err
	}
	return m.vacate(ctx, s, true, func(j *journal) {
		j.State = Paused
		// The next try must not meet a leftover of this one.
		j.DiskIndex++
	})
}

// compact merges a disk that has become too deep to open, and publishes the capture anew.
func (m *Manager) compact(ctx context.Context, s *Sandbox, c runtime.Capture, man manifest) (runtime.Capture, error) {
	record, changed, err := s.rt.Compact(ctx, s.spec(m), c)
	if err != nil || !changed {
		return c, err
	}
	man.Record = record
	if err := writeManifest(c.Dir, man); err != nil {
		return c, err
	}
	c.Record = record
	m.dropUnused(s)
	return c, nil
}
