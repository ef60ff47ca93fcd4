package sandbox

import (
	"cmp"
	"context"
	"errors"
	"os"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
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
// state as it was.
func (m *Manager) Resume(ctx context.Context, op Operation, id string, opts ResumeOptions) (View, error) {
	if opts.Idle != nil {
		if err := checkIdle("resume", *opts.Idle); err != nil {
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
	dead := opts.Cold && (j.State == Failed || j.State == Lost)
	if err := fence(j, op); err != nil {
		return View{}, err
	}
	if err := need(id, j.State, Paused, "resume"); err != nil && !dead {
		return View{}, err
	}
	if err := m.roomToResume(s); err != nil {
		return View{}, fault.Wrap(err, "resume", "sandbox "+id)
	}
	if dead {
		err = m.rescue(ctx, s, op, opts)
	} else {
		err = m.resume(ctx, s, op, opts)
	}
	if err != nil {
		err = classify(explain(ctx, err), "the sandbox stays "+string(s.journal().State)+": ")
		return View{}, fault.Wrap(err, "resume", "sandbox "+id)
	}
	return s.View(), nil
}

// wake is one start of a sandbox from its capture.
type wake struct {
	op   Operation
	opts ResumeOptions
	// boot: from the capture's disk, not its memory.
	boot bool
	// from is the state to go back to when it fails, why what the running sandbox says it is.
	from State
	why  string
}

// resume wakes a paused sandbox.
func (m *Manager) resume(ctx context.Context, s *Sandbox, op Operation, opts ResumeOptions) error {
	_, man, err := readCapture(s.dir.Capture(s.journal().Capture))
	if err != nil {
		return err
	}
	w := wake{op: op, opts: opts, boot: opts.Cold || man.DiskOnly, from: Paused}
	if w.boot {
		if err := canBoot(s, man); err != nil {
			return err
		}
		w.why = "booted from its disk as it was saved at " + clockText(man.CreatedAt) + "; memory and processes began anew"
	}
	err = m.wake(ctx, s, w)
	j := s.journal()
	switch {
	case err == nil:
	case !w.boot:
		err = hintCold(s, err)
	case j.State == Paused && j.unproven() && startsNever(ctx, err):
		err = m.fallBack(ctx, s, op, opts, err)
	}
	return err
}

// canBoot says whether a capture's disk can be booted from.
func canBoot(s *Sandbox, man manifest) error {
	if man.DiskOnly || s.rt.Capabilities().DiskApart {
		return nil
	}
	id := s.ID()
	return fault.New(fault.FailedPrecondition, "boot", "sandbox "+id,
		s.rt.Name()+" keeps memory and disk of a sandbox in one, and starts from both or neither").
		WithHint("resume it with its memory: roost resume " + id)
}

// hintCold adds to an error of memory that cannot be restored what still can be.
func hintCold(s *Sandbox, err error) error {
	lost := fault.Is(err, fault.DataLoss) || fault.Is(err, fault.FailedPrecondition)
	if !lost || !s.rt.Capabilities().DiskApart {
		return err
	}
	hint := "boot it from its disk, without its memory: roost resume --cold " + s.ID()
	if old := fault.HintOf(err); old != "" {
		hint = old + "; or " + hint
	}
	return &fault.Error{Kind: fault.KindOf(err), Err: err, Hint: hint}
}

// wake starts a sandbox from its current capture.
func (m *Manager) wake(ctx context.Context, s *Sandbox, w wake) error {
	clock := newStopwatch()
	src, err := m.captureSource(ctx, s, w.boot)
	if src.initrd != "" {
		defer os.Remove(src.initrd) // it holds a token
	}
	if err != nil {
		return err
	}
	clock.mark("read")
	err = s.update(false, func(j *journal) {
		j.State = Resuming
		if w.from != Paused {
			// What the dead instance left stays until the next capture.
			j.Was, j.DiskIndex = w.from, j.DiskIndex+1
		}
	})
	if err != nil {
		return err
	}
	if err = failpoint.Hit("sandbox.resume.marked"); err == nil {
		err = m.start(ctx, s, src, clock)
	}
	if err == nil {
		err = failpoint.Hit("sandbox.resume.started")
	}
	if err == nil {
		err = m.settleRunning(s, w.op, clock, w.settle)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return errors.Join(err, m.abandonResume(ctx, s))
}

// settle is what the journal says of the sandbox once it runs.
func (w wake) settle(j *journal) {
	j.Reason, j.Was, j.Last = w.why, "", nil
	if j.unproven() {
		j.Fallback = 0 // what it was kept for has started
	}
	if w.opts.Idle != nil {
		j.IdleTimeout = *w.opts.Idle
	}
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
		if j.Was == "" && j.Fallback > j.Capture {
			j.exchange() // it was on its way back to its last save
		}
		j.State, j.Was = cmp.Or(j.Was, Paused), ""
		// The next try must not meet a leftover of this one.
		j.DiskIndex++
	})
}

// clockText is a moment as reasons show it.
func clockText(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05 UTC") }
