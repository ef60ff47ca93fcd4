package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/undo"
)

// adoptionsAtOnce bounds how many sandboxes are recovered at the same time.
const adoptionsAtOnce = 8

// recover rebuilds the manager from the journals: what ran is adopted, what was half done is
// finished or undone, and what belongs to nobody is removed.
func (m *Manager) recover(ctx context.Context) error {
	if err := m.emptyTrash(); err != nil {
		m.log.Error("empty trash", "error", err)
	}
	entries, err := os.ReadDir(m.cfg.Data.Sandboxes())
	if err != nil {
		return fault.Wrap(err, "list", "sandbox directories")
	}
	var group errgroup.Group
	group.SetLimit(adoptionsAtOnce)
	for _, e := range entries {
		if e.Name() == filepath.Base(m.cfg.Data.Trash()) {
			continue
		}
		s, err := m.load(e.Name())
		if err != nil {
			m.log.Error("sandbox directory without a readable journal; moved to trash", "name", e.Name(), "error", err)
			continue
		}
		group.Go(func() error {
			if err := m.recoverOne(ctx, s); err != nil {
				m.log.Error("recover", "sandbox", s.ID(), "state", s.journal().State, "error", err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return m.collect(ctx)
}

func (m *Manager) emptyTrash() error {
	entries, err := os.ReadDir(m.cfg.Data.Trash())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(m.cfg.Data.Trash(), e.Name())))
	}
	return errors.Join(errs...)
}

// load reads one directory. A directory without a journal is a create that never got so far
// as to make anything else.
func (m *Manager) load(name string) (*Sandbox, error) {
	dir := m.cfg.Data.Sandbox(name)
	j, err := readJournal(dir)
	if err == nil && j.ID != name {
		err = fault.New(fault.Internal, "read", "journal", "it is of sandbox "+j.ID)
	}
	if err != nil {
		return nil, errors.Join(err, os.Rename(dir.String(), filepath.Join(m.cfg.Data.Trash(), name+"-"+randomHex(4))))
	}
	s := newSandbox(dir, *j)
	m.mu.Lock()
	m.all[name] = s
	m.mu.Unlock()
	return s, nil
}

// recoverOne takes up a sandbox where the last agent left it.
func (m *Manager) recoverOne(ctx context.Context, s *Sandbox) error {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	switch j := s.journal(); j.State {
	case Creating, Destroying:
		// Nobody was told that it exists, or somebody that it does not.
		return m.destroyRecovered(ctx, s)
	case Running:
		return m.adopt(ctx, s)
	case Pausing:
		return m.recoverPause(ctx, s)
	case Resuming:
		return m.recoverResume(ctx, s)
	case Paused:
		return m.dropUnused(s)
	default:
		return nil
	}
}

// destroyRecovered destroys a sandbox whose parts this agent does not hold.
func (m *Manager) destroyRecovered(ctx context.Context, s *Sandbox) error {
	if err := m.reclaimSlot(ctx, s); err != nil {
		return err
	}
	return m.destroy(ctx, s)
}

// reclaimSlot ends what runs under the sandbox's uid and gives its slot back.
func (m *Manager) reclaimSlot(ctx context.Context, s *Sandbox) error {
	j := s.journal()
	if err := m.cfg.Runtime.Discard(ctx, s.spec(m)); err != nil {
		return err
	}
	if j.Slot == noSlot {
		return nil
	}
	slot, err := m.cfg.Network.Adopt(ctx, j.Slot, j.ID)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	}
	return m.cfg.Network.Release(ctx, slot)
}

// adopt takes over a running sandbox; one that ended meanwhile is failed.
func (m *Manager) adopt(ctx context.Context, s *Sandbox) error {
	if err := m.takeOver(ctx, s); err != nil {
		reason := "it ended while the agent was down: " + fault.Message(err)
		return errors.Join(m.reclaimEnded(ctx, s), m.fail(ctx, s, reason))
	}
	in, _, _ := s.parts()
	s.touch(m.cfg.Clock())
	m.watch(s, in)
	m.log.Info("sandbox adopted", "sandbox", s.ID())
	return nil
}

// reclaimEnded frees the slot and uid of a sandbox that runs no more, and keeps its disk.
func (m *Manager) reclaimEnded(ctx context.Context, s *Sandbox) error {
	j := s.journal()
	if err := m.cfg.Runtime.Reap(ctx, s.spec(m)); err != nil {
		return err
	}
	slot, err := m.cfg.Network.Adopt(ctx, j.Slot, j.ID)
	if err != nil {
		return nil //nolint:nilerr // it is gone already
	}
	return m.cfg.Network.Release(ctx, slot)
}

// takeOver gets hold of a running instance, its slot and its guest.
func (m *Manager) takeOver(ctx context.Context, s *Sandbox) error {
	j := s.journal()
	in, err := m.cfg.Runtime.Adopt(ctx, s.spec(m), j.Instance)
	if err != nil {
		return err
	}
	slot, err := m.cfg.Network.Adopt(ctx, j.Slot, j.ID)
	if err != nil {
		in.Detach()
		return err
	}
	s.attach(in, slot, guestclient.New(slot.Dial, j.ControlToken))
	return nil
}

// recoverPause completes a pause whose capture was published, and thaws one whose was not.
func (m *Manager) recoverPause(ctx context.Context, s *Sandbox) error {
	j := s.journal()
	adopted := m.takeOver(ctx, s)
	if _, _, err := readCapture(s.dir.Capture(j.Pending)); err == nil {
		if adopted != nil {
			if err := m.reclaimEnded(ctx, s); err != nil {
				return err
			}
		}
		ctx, cancel := undo.Context(ctx)
		defer cancel()
		return m.completePause(ctx, s, Operation{}, "paused; the agent was restarted meanwhile", newStopwatch())
	}
	if adopted != nil {
		reason := "it ended during a pause, while the agent was down: " + fault.Message(adopted)
		return errors.Join(m.reclaimEnded(ctx, s), os.RemoveAll(s.dir.CaptureStage(j.Pending)), m.fail(ctx, s, reason))
	}
	return m.thawRecovered(ctx, s)
}

func (m *Manager) thawRecovered(ctx context.Context, s *Sandbox) error {
	in, _, guest := s.parts()
	if err := m.unfreeze(ctx, s, in, guest); err != nil {
		return errors.Join(err, m.fail(ctx, s, "it could not be thawed after the agent was killed during a pause: "+fault.Message(err)))
	}
	err := errors.Join(os.RemoveAll(s.dir.CaptureStage(s.journal().Pending)), s.update(false, func(j *journal) {
		j.State, j.Pending = Running, 0
	}))
	m.watch(s, in)
	return err
}

// recoverResume undoes a resume: the capture is as it was.
func (m *Manager) recoverResume(ctx context.Context, s *Sandbox) error {
	if err := m.reclaimSlot(ctx, s); err != nil {
		return err
	}
	_, man, err := readCapture(s.dir.Capture(s.journal().Capture))
	if err != nil {
		return err
	}
	err = s.update(true, func(j *journal) {
		j.State, j.ControlToken = Paused, man.ControlToken
		j.Slot, j.UID, j.Instance = noSlot, 0, nil
		j.DiskIndex++
	})
	return errors.Join(err, m.dropUnused(s))
}
