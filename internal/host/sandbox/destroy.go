package sandbox

import (
	"context"
	"errors"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// Destroy removes a sandbox, whatever it is doing: operations under way and waiting are
// cancelled. A sandbox that is not there is destroyed already.
func (m *Manager) Destroy(ctx context.Context, op Operation, id string) error {
	ctx, done, err := m.call(ctx)
	if err != nil {
		return err
	}
	defer done()
	s, err := m.lookup(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err := fence(s.journal(), op); err != nil {
		return err // before it interrupts anything
	}
	defer s.interrupt()()
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if !m.has(s) {
		return nil // another Destroy, or a failed create, was first
	}
	if err := fence(s.journal(), op); err != nil {
		return err
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return fault.Wrap(m.destroy(ctx, s), "destroy", "sandbox "+id)
}

// destroy gives back everything, in an order in which nothing is given back that may still be
// used: what runs ends, the directory goes and its journal with it, then the slot.
func (m *Manager) destroy(ctx context.Context, s *Sandbox) error {
	mark := func(j *journal) { j.State = Destroying }
	if err := s.update(false, mark); err != nil {
		// A full disk must not keep anybody from making space.
		m.log.Warn("destroying a sandbox without a note of it", "sandbox", s.ID(), "error", err)
		s.remember(mark)
	}
	if err := failpoint.Hit("sandbox.destroy.marked"); err != nil {
		return err
	}
	if err := m.end(ctx, s); err != nil {
		return err
	}
	if err := s.rt.Discard(ctx, s.spec(m)); err != nil {
		return err
	}
	if err := failpoint.Hit("sandbox.destroy.stopped"); err != nil {
		return err
	}
	return m.remove(ctx, s)
}

// remove moves the directory away first, so that a crash leaves either a whole sandbox or
// trash and a stray slot, which nothing names.
func (m *Manager) remove(ctx context.Context, s *Sandbox) error {
	empty, err := m.discard(s.dir.String(), s.ID())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, "remove", "sandbox directory")
	}
	defer empty()
	if err := failpoint.Hit("sandbox.destroy.renamed"); err != nil {
		return err
	}
	_, slot, _ := s.parts()
	s.attach(nil, nil, nil)
	// From here on they may be another's: were this repeated, it must not end that one's processes.
	s.remember(func(j *journal) { j.Slot, j.UID, j.Instance = noSlot, 0, nil })
	m.release(ctx, slot)
	if err := failpoint.Hit("sandbox.destroy.released"); err != nil {
		return err
	}
	// Forgotten last: whoever asks for the same id again must not meet its slot.
	m.forget(s.ID())
	m.log.Info("sandbox destroyed", "sandbox", s.ID())
	return nil
}
