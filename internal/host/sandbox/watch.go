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
		if err := m.finish(ctx, s); err != nil {
			m.log.Error("clean up after a sandbox's death", "sandbox", s.ID(), "error", err)
		}
	})
}

// fail gives back what a dead sandbox held and keeps its disk, console and reason. While
// something of it still runs it keeps its slot and uid.
func (m *Manager) fail(ctx context.Context, s *Sandbox, reason string) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	m.log.Warn("sandbox failed", "sandbox", s.ID(), "reason", reason)
	m.dropStage(s)
	settle := func(j *journal) {
		if j.State != Failed {
			j.State, j.Reason, j.Pending = Failed, reason, 0
			j.Generation++
		}
	}
	// First, so that whoever is cut off by the rest finds the reason.
	if s.update(false, settle) != nil {
		s.remember(settle)
	}
	if err := m.end(ctx, s); err != nil {
		return err // finish comes back to it
	}
	return m.vacate(ctx, s, false, func(*journal) {})
}
