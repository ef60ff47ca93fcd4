package sandbox

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// held is a running sandbox that stands still because it wrote while the host's disk was full. The
// journal says so before it is done and until after it was undone: the next agent holds it again, or
// lets it go. A value is never changed.
type held struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Quiesced: the guest agent holds the user processes; without it the machine alone stands still,
	// and a pause has to have it run for a moment.
	Quiesced bool `json:"quiesced,omitempty"`
}

// How long a hold waits for the sandbox's gate before it cuts off who has it, and then.
const (
	gatePatience = 200 * time.Millisecond
	gateLimit    = 5 * time.Second
)

// hold makes a running sandbox stand still: its user processes, as far as its guest answers in time,
// and its machine, whose kernel writes too.
func (m *Manager) hold(ctx context.Context, s *Sandbox, why string, patience time.Duration) error {
	ctx, leave, err := m.enterToHold(ctx, s)
	if err != nil {
		return err
	}
	defer leave()
	j := s.journal()
	in, _, guest := s.parts()
	if !m.has(s) || j.State != Running || in == nil {
		return nil // paused, say: it writes no more
	}
	ctx = untilExit(ctx, in)
	if j.Held == nil {
		s.still.Store(false) // what was done before a pause says nothing of now
		m.noteHeld(s, &held{Reason: why, Since: m.cfg.Clock()})
		m.log.Warn("sandbox frozen", "sandbox", j.ID, "reason", why)
	}
	if err := failpoint.Hit("sandbox.fill.marked"); err != nil {
		return err
	}
	h := *s.journal().Held
	if !h.Quiesced {
		if err = guest.Hold(ctx, patience); err == nil {
			h.Quiesced = true
		}
	}
	guest.CloseIdle()
	if err := errors.Join(failpoint.Hit("sandbox.fill.quiesced"), in.Freeze(ctx), failpoint.Hit("sandbox.fill.frozen")); err != nil {
		return explain(ctx, err)
	}
	if !h.Quiesced && !s.rt.Capabilities().FreezesGuest {
		return explain(ctx, err) // it writes on; the next look tries again
	}
	s.still.Store(true)
	// A guest that is asked to go on later has all the time for it again.
	s.remember(func(j *journal) { j.Unthawed = time.Time{} })
	m.noteHeld(s, &h)
	return nil
}

// enterToHold takes the gate of a sandbox. What works on one that runs, a fork say, is cut off when it
// does not end: the sandbox writes meanwhile.
func (m *Manager) enterToHold(ctx context.Context, s *Sandbox) (context.Context, func(), error) {
	defer s.want()()
	limit := time.NewTimer(gateLimit)
	defer limit.Stop()
	soon := time.After(gatePatience)
	for {
		select {
		case s.gate <- struct{}{}:
			ctx, leave := s.begin(ctx)
			return ctx, leave, nil
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-soon:
			if s.journal().State == Running {
				s.cut(fault.New(fault.ResourceExhausted, "", "", "the host's disk is full").WithHint(MakeRoom))
			}
		case <-limit.C:
			return nil, nil, fault.New(fault.DeadlineExceeded, "freeze", "sandbox "+s.ID(), "another operation on it does not end")
		}
	}
}

// noteHeld writes down that a sandbox stands still. Where even that does not fit, it gets a little of the reserve;
// at last it is only known.
func (m *Manager) noteHeld(s *Sandbox, h *held) {
	change := func(j *journal) { j.Held = h }
	err := s.update(false, change)
	if errors.Is(err, syscall.ENOSPC) && m.lendReserve() == nil {
		err = s.update(false, change)
	}
	if err != nil {
		m.log.Error("that a sandbox is frozen is not written down", "sandbox", s.ID(), "error", err)
		s.remember(change)
	}
	s.touch(m.cfg.Clock())
}

// letOneGo lets a held sandbox run again, with its clock right.
func (m *Manager) letOneGo(ctx context.Context, s *Sandbox) error {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if j := s.journal(); !m.has(s) || j.State != Running || j.Held == nil {
		return nil
	}
	if in, _, _ := s.parts(); in == nil {
		return m.finish(ctx, s) // not adopted yet
	}
	if err := failpoint.Hit("sandbox.fill.thawing"); err != nil {
		return err
	}
	undoing, cancel := undo.Context(ctx)
	defer cancel()
	s.still.Store(false)
	// From here on its processes may run, whatever is heard of the guest.
	h := *s.journal().Held
	h.Quiesced = false
	m.noteHeld(s, &h)
	if err := m.thaw(undoing, s); err != nil {
		return m.unthawed(undoing, s, err, "it could not be thawed after the host's disk had been full: "+fault.Message(err))
	}
	if err := failpoint.Hit("sandbox.fill.thawed"); err != nil {
		return err
	}
	m.settleThawed(s)
	change := func(j *journal) { j.Held = nil }
	if err := s.update(false, change); err != nil {
		s.remember(change) // after a crash it is let go again
	}
	m.log.Info("sandbox goes on: the host's disk has room again", "sandbox", s.ID())
	return nil
}

// heldBack refuses what a sandbox that stands still cannot do.
func heldBack(j journal, kind fault.Kind, op string) error {
	if j.Held == nil {
		return nil
	}
	return fault.New(kind, op, "sandbox "+j.ID, "it is "+j.Held.Reason).
		WithHint("save it: roost pause " + j.ID + "; or remove it: roost rm " + j.ID + "; or " + MakeRoom)
}

// quiesce has the guest hold and sync what a capture shall find. A sandbox that is held already is as
// it shall be, unless its memory, with what the guest has not written yet, is to be left out.
func (m *Manager) quiesce(ctx context.Context, s *Sandbox, diskOnly bool) error {
	in, _, guest := s.parts()
	if h := s.journal().Held; h != nil {
		if h.Quiesced && !diskOnly {
			return nil
		}
		if err := in.Thaw(ctx); err != nil {
			return err
		}
	}
	return guest.Freeze(ctx, freezeSync)
}

// holdOn leaves a held sandbox in the middle of an uncommitted pause as it was.
func (m *Manager) holdOn(ctx context.Context, s *Sandbox) {
	s.still.Store(false)
	if in, _, _ := s.parts(); in != nil {
		err := in.Freeze(ctx)
		if err != nil {
			m.log.Warn("a frozen sandbox is frozen again later", "sandbox", s.ID(), "error", err)
		}
		s.still.Store(err == nil)
	}
}
