package sandbox

import (
	"context"

	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// watch waits for an instance to end by itself and says so in the sandbox's state. It ends
// with the instance, or with the manager.
func (m *Manager) watch(s *Sandbox, in runtime.Instance) {
	m.Go(func() {
		select {
		case <-m.Done():
			return
		case <-in.Exited():
		}
		if in.Exit().Requested {
			return
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
		if err := m.fail(ctx, s, in.Exit().Reason); err != nil {
			m.log.Error("clean up after a sandbox's death", "sandbox", s.ID(), "error", err)
		}
	})
}

// fail gives back what a dead sandbox held and keeps its disk, console and reason.
func (m *Manager) fail(ctx context.Context, s *Sandbox, reason string) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	in, slot, guest := s.parts()
	var undos undo.Stack
	undos.Push("settle", func(context.Context) error {
		return s.update(false, func(j *journal) {
			j.State, j.Reason = Failed, reason
			j.Generation++
			j.Slot, j.UID, j.Instance, j.Pending = noSlot, 0, nil, 0
		})
	})
	if slot != nil {
		undos.Push("release slot", func(ctx context.Context) error { return m.cfg.Network.Release(ctx, slot) })
	}
	if in != nil {
		undos.Push("stop instance", func(ctx context.Context) error {
			guest.CloseIdle()
			return in.Stop(ctx)
		})
	}
	err := undos.Rollback(ctx)
	s.attach(nil, nil, nil)
	m.log.Warn("sandbox failed", "sandbox", s.ID(), "reason", reason)
	return err
}
