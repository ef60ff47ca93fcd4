package sandbox

import (
	"context"
	"errors"

	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/undo"
)

// finish brings a sandbox out of a state in which its operation had to leave it: the disk was
// full for the journal, say, or a process would not die. Whoever enters next does it, and the
// collector when nobody comes.
func (m *Manager) finish(ctx context.Context, s *Sandbox) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	j := s.journal()
	if m.waits(s) {
		return nil
	}
	switch j.State {
	case Creating, Destroying:
		return m.destroy(ctx, s)
	case Pausing:
		return m.finishPause(ctx, s)
	case Resuming:
		return m.abandonResume(ctx, s)
	case Snapshotting:
		return m.recoverSnapshot(ctx, s)
	case Running:
		return m.finishRunning(ctx, s)
	case Failed, Lost:
		return m.finishDead(ctx, s)
	}
	return nil
}

// finishDead gives back what a dead sandbox still holds, and ends the saving of its disk.
func (m *Manager) finishDead(ctx context.Context, s *Sandbox) error {
	j := s.journal()
	switch {
	case j.Slot != noSlot:
		return m.die(ctx, s, j.State, j.Reason)
	case j.Pending != 0:
		return m.finishSalvage(s)
	}
	return nil
}

// finishRunning fails a sandbox whose instance has ended by itself, and takes over one that this
// agent could not so far.
func (m *Manager) finishRunning(ctx context.Context, s *Sandbox) error {
	in, _, _ := s.parts()
	if in == nil {
		return m.adopt(ctx, s)
	}
	select {
	case <-in.Exited():
		return m.fail(ctx, s, in.Exit().Reason)
	default:
		return nil
	}
}

// finishAll finishes what nobody works on.
func (m *Manager) finishAll(ctx context.Context) error {
	var errs []error
	for _, s := range m.list() {
		select {
		case s.gate <- struct{}{}:
			ctx, leave := s.begin(ctx)
			errs = append(errs, m.finish(ctx, s))
			leave()
		default: // somebody is at it
		}
	}
	return errors.Join(errs...)
}

// end ends whatever runs for a sandbox. Only when it returns nil may slot, uid and disk be
// touched: nothing runs any more.
func (m *Manager) end(ctx context.Context, s *Sandbox) error {
	in, _, guest := s.parts()
	if guest != nil {
		guest.Close()
	}
	if in == nil {
		return s.rt.Reap(ctx, s.spec(m))
	}
	return in.Stop(ctx)
}

// vacate writes down that the sandbox has no slot and uid any more, together with change, and
// then gives them back. Never the other way round: were a journal to name what is another
// sandbox's by now, the agent that reads it after a crash would end that one's processes.
func (m *Manager) vacate(ctx context.Context, s *Sandbox, durable bool, change func(*journal)) error {
	slot, err := m.writeVacant(s, durable, change)
	if err == nil {
		m.release(ctx, slot)
	}
	return err
}

// writeVacant is vacate without the giving back: the slot is the caller's to release.
func (m *Manager) writeVacant(s *Sandbox, durable bool, change func(*journal)) (*network.Slot, error) {
	_, slot, _ := s.parts()
	err := s.update(durable, func(j *journal) {
		change(j)
		j.Slot, j.UID, j.Instance, j.Booted = noSlot, 0, nil, false
	})
	if err != nil {
		return nil, err
	}
	s.attach(nil, nil, nil)
	return slot, nil
}

// release gives back a slot that no journal names. One that this agent does not hold (nil) is
// a stray for the collector; so is one whose release failed.
func (m *Manager) release(ctx context.Context, slot *network.Slot) {
	if slot == nil {
		return
	}
	if err := m.cfg.Network.Release(ctx, slot); err != nil {
		m.log.Error("slot not released; the collector will", "slot", slot.Index(), "error", err)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.unreleased = append(m.unreleased, slot)
	}
}

// releaseAgain tries again what release could not do.
func (m *Manager) releaseAgain(ctx context.Context) {
	m.mu.Lock()
	slots := m.unreleased
	m.unreleased = nil
	m.mu.Unlock()
	for _, slot := range slots {
		m.release(ctx, slot)
	}
}
