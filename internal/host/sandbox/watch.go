package sandbox

import (
	"context"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// How often a running instance is looked at, how often one that was seen stopped, and how long it
// must have been seen so, every time, to be given up. A process that is traced for a moment is not
// dead, and what a slow guest does not answer says nothing: only what the kernel says of the
// process counts.
const (
	lookTick    = 2 * time.Second
	stoppedTick = 250 * time.Millisecond
	stoppedFor  = 5 * time.Second
)

// watch waits for an instance to end by itself, or to stand still for ever, and says so in the
// sandbox's state. It ends with the instance, or with the manager.
func (m *Manager) watch(s *Sandbox, in runtime.Instance) {
	m.Go(func() {
		why := m.untilDead(in)
		if why == "" {
			select {
			case <-m.Done():
				return
			default:
			}
			if in.Exit().Requested {
				return
			}
		} else {
			m.endStopped(s, in, why)
		}
		// The transition under way, if any, sees the exit too and settles it.
		ctx, leave, err := s.enter(context.Background())
		if err != nil {
			return
		}
		defer leave()
		if now, _, _ := s.parts(); now != in {
			return
		}
		if why != "" && m.ran(s) { // a published pause is completed, a destroy goes on
			err = m.fail(ctx, s, why)
		} else {
			err = m.finish(ctx, s)
		}
		if err != nil {
			m.log.Error("clean up after a sandbox's death", "sandbox", s.ID(), "error", err)
		}
	})
}

// untilDead returns when an instance has ended, the manager stops, or, saying why, when the
// instance will not go on.
func (m *Manager) untilDead(in runtime.Instance) string {
	tick := time.NewTicker(lookTick)
	defer tick.Stop()
	var since time.Time
	for {
		select {
		case <-m.Done():
			return ""
		case <-in.Exited():
			return ""
		case <-tick.C:
		}
		why := in.Stopped()
		switch {
		case why == "" && !since.IsZero():
			since = time.Time{}
			tick.Reset(lookTick)
		case why == "":
		case since.IsZero():
			since = time.Now()
			tick.Reset(stoppedTick)
		case time.Since(since) >= stoppedFor:
			return why
		}
	}
}

// endStopped ends an instance that will not go on, and with it whatever waits for an answer of it.
func (m *Manager) endStopped(s *Sandbox, in runtime.Instance, why string) {
	m.log.Warn("ending a sandbox that does not go on", "sandbox", s.ID(), "reason", why)
	s.cut(fault.New(fault.Internal, "", "", "the sandbox ended: "+why))
	ctx, cancel := undo.Context(context.Background())
	defer cancel()
	if err := in.Stop(ctx); err != nil {
		m.log.Error("end a stopped sandbox", "sandbox", s.ID(), "error", err)
	}
}

// cut cancels the transition under way, if any.
func (s *Sandbox) cut(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.abort != nil {
		s.abort(cause)
	}
}

// fail is die for a sandbox that ended while the host was up.
func (m *Manager) fail(ctx context.Context, s *Sandbox, reason string) error {
	return m.die(ctx, s, Failed, reason)
}

// die gives back what a dead sandbox held and keeps its disk, console and reason, and what its
// disk can be found by. While something of it still runs it keeps its slot and uid. What is being
// destroyed cannot die.
func (m *Manager) die(ctx context.Context, s *Sandbox, as State, reason string) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	j := s.journal()
	dead := j.State == Failed || j.State == Lost
	if !dead && !may(j.State, as) {
		return fault.New(fault.Internal, "change", "sandbox "+j.ID, string(j.State)+" cannot become "+string(as))
	}
	m.log.Warn("sandbox "+string(as), "sandbox", j.ID, "reason", reason)
	if !dead {
		m.dropPending(s)
		last := m.recordOf(s)
		settle := func(j *journal) {
			m.thisBoot(j)
			j.State, j.Reason, j.Pending, j.Last, j.Unthawed = as, reason, 0, last, time.Time{}
			j.Generation++
		}
		// First, so that whoever is cut off by the rest finds the reason.
		if s.update(false, settle) != nil {
			s.remember(settle)
		}
	}
	if err := m.end(ctx, s); err != nil {
		return err // finish comes back to it
	}
	return m.vacate(ctx, s, false, func(*journal) {})
}
