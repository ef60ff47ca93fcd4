package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// Destroy removes a sandbox, whatever it is doing: an operation under way is cancelled. A
// sandbox that is not there is destroyed already.
func (m *Manager) Destroy(ctx context.Context, op Operation, id string) error {
	s, err := m.lookup(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	s.interrupt()
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := m.lookup(id); err != nil {
		return nil //nolint:nilerr // another Destroy, or a failed create, was first
	}
	if err := fence(s.journal(), op); err != nil {
		return err
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return fault.Wrap(m.destroy(ctx, s), "destroy", "sandbox "+id)
}

// destroy gives back everything. Each step runs even when one before it failed, except that
// files stay while something may still write them.
func (m *Manager) destroy(ctx context.Context, s *Sandbox) error {
	if err := s.update(false, func(j *journal) { j.State = Destroying }); err != nil {
		return err
	}
	if err := failpoint.Hit("sandbox.destroy.marked"); err != nil {
		return err
	}
	in, slot, guest := s.parts()
	if in != nil {
		guest.CloseIdle()
		if err := in.Stop(ctx); err != nil {
			return err
		}
	}
	if err := m.cfg.Runtime.Discard(ctx, s.spec(m)); err != nil {
		return err
	}
	var errs []error
	if slot != nil {
		errs = append(errs, m.cfg.Network.Release(ctx, slot))
	}
	s.attach(nil, nil, nil)
	errs = append(errs, failpoint.Hit("sandbox.destroy.stopped"), m.removeFiles(s))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.forget(s.ID())
	m.log.Info("sandbox destroyed", "sandbox", s.ID())
	return nil
}

// removeFiles moves the directory away first, so that a crash leaves either a whole sandbox
// or trash.
func (m *Manager) removeFiles(s *Sandbox) error {
	trash := filepath.Join(m.cfg.Data.Trash(), s.ID()+"-"+randomHex(4))
	err := os.Rename(s.dir.String(), trash)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "remove", "sandbox directory")
	}
	if err := failpoint.Hit("sandbox.destroy.renamed"); err != nil {
		return err
	}
	return fault.Wrap(os.RemoveAll(trash), "empty", "trash")
}
