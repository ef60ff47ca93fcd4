package sandbox

import (
	"context"
	"errors"

	"github.com/roosthq/roost/internal/host/runtime"
)

// A capture whose disk has become too deep to open is merged before the next resume: in the
// background while the sandbox is paused, under its gate, which is given up as soon as somebody
// wants it; by the resume itself where there was no time for that.

// compact merges a disk that has become too deep to open, and publishes the capture anew. What an
// interrupted one has written is removed, and what was merged is, unless the sandbox is a dead one
// on its way back: that has a disk which no capture names (dropUnused).
func (m *Manager) compact(ctx context.Context, s *Sandbox, c runtime.Capture, man manifest) (runtime.Capture, error) {
	record, changed, err := s.rt.Compact(ctx, s.spec(m), c)
	if err == nil && !changed {
		return c, nil
	}
	if err == nil {
		man.Record = record
		err = writeManifest(c.Dir, man)
	}
	m.dropUnused(s)
	return runtime.Capture{Dir: c.Dir, Record: record}, err
}

// compactSoon is compactPaused beside everything else.
func (m *Manager) compactSoon(s *Sandbox) {
	m.Go(func() {
		ctx, done, err := m.call(context.Background())
		if err != nil {
			return // the agent stops
		}
		defer done()
		select {
		case s.gate <- struct{}{}:
			m.compactHeld(ctx, s)
		case <-ctx.Done():
		}
	})
}

// compactAll merges what compactSoon could not.
func (m *Manager) compactAll(ctx context.Context) {
	for _, s := range m.list() {
		select {
		case s.gate <- struct{}{}:
			m.compactHeld(ctx, s)
		default: // somebody is at it
		}
	}
}

// compactHeld merges a paused sandbox's capture until somebody wants the gate, which is held.
func (m *Manager) compactHeld(ctx context.Context, s *Sandbox) {
	ctx, leave := s.beginYielding(ctx)
	defer leave()
	j := s.journal()
	if j.State != Paused || j.Capture == s.shallow || s.gone() != nil || !m.has(s) {
		return
	}
	m.dropUnused(s) // what a pause that was cut short after its commit did not come to
	if d, err := m.look(); err != nil || d.State == FillFull {
		return // what is merged is written anew first
	}
	c, man, err := readCapture(s.dir.Capture(j.Capture))
	if err == nil {
		_, err = m.compact(ctx, s, c, man)
	}
	switch {
	case err == nil:
		s.shallow = j.Capture
	case ctx.Err() == nil && !errors.Is(err, context.Canceled):
		m.log.Warn("compact a paused sandbox", "sandbox", s.ID(), "error", err)
	}
}
