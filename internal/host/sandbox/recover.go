package sandbox

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/undo"
)

// adoptionsAtOnce bounds how many sandboxes are recovered at the same time.
const adoptionsAtOnce = 8

// recover rebuilds the manager from the journals: what ran is adopted, what was half done is
// finished or undone, and what belongs to nobody is removed.
func (m *Manager) recover(ctx context.Context) error {
	boots := m.bootNotes()
	if err := m.emptyTrash(); err != nil {
		m.log.Error("empty trash", "error", err)
	}
	if err := m.dropSnapshotStages(); err != nil {
		m.log.Error("drop snapshots in the making", "error", err)
	}
	entries, err := os.ReadDir(m.cfg.Data.Sandboxes())
	if err != nil {
		return fault.Wrap(err, "list", "sandbox directories")
	}
	var group errgroup.Group
	group.SetLimit(adoptionsAtOnce)
	broken := map[*Sandbox]error{}
	for _, e := range entries {
		if !idPattern.MatchString(e.Name()) {
			continue // the trash, or not ours: lost+found
		}
		s, damage, err := m.load(e.Name())
		if err != nil {
			m.log.Warn("sandbox directory without a journal; removed", "sandbox", e.Name(), "error", err)
			continue
		}
		if damage != nil {
			broken[s] = damage
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
	if err := m.finishForks(ctx); err != nil {
		m.log.Error("take back unfinished forks", "error", err)
	}
	if err := m.reapBoots(ctx, boots); err != nil {
		m.log.Error("end boots of templates", "error", err)
	}
	if err := m.collect(ctx); err != nil {
		m.log.Error("collect", "error", err)
	}
	m.mend(ctx, broken)
	return nil
}

// load reads one directory. One without a journal and with no other file is a create that never
// got so far as to make any. One whose journal is damaged, or gone, holds somebody's data: it is
// kept, as failed, until mend looks at it; damage is why.
func (m *Manager) load(name string) (s *Sandbox, damage, err error) {
	dir := m.cfg.Data.Sandbox(name)
	j, err := readJournal(dir)
	if errors.Is(err, os.ErrNotExist) && !holdsData(dir) {
		empty, moved := m.discard(dir.String(), name)
		empty()
		return nil, nil, errors.Join(err, moved)
	}
	if err == nil && j.ID != name {
		err = fault.New(fault.Internal, "read", "journal", "it is of sandbox "+j.ID)
	}
	if err != nil {
		m.log.Error("sandbox's journal cannot be read", "sandbox", name, "error", err)
		j = m.lostJournal(name, err)
	}
	s = newSandbox(dir, *j, m.runtimeOf(j.Runtime))
	m.mu.Lock()
	m.all[name] = s
	m.mu.Unlock()
	return s, err, nil
}

// holdsData says whether there is, or may be, anything in a sandbox's directory that a person
// could miss.
func holdsData(dir paths.Sandbox) bool {
	for _, path := range []string{dir.Captures(), dir.Disk()} {
		entries, err := os.ReadDir(path)
		if len(entries) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}

// recoverOne takes up a sandbox where the last agent left it.
func (m *Manager) recoverOne(ctx context.Context, s *Sandbox) error {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if m.rebooted(s) && m.ran(s) {
		return m.die(ctx, s, Lost, "the host was rebooted at "+clockText(bootedAt()))
	}
	m.noteBoot(s)
	j := s.journal()
	if err := s.gone(); err != nil {
		m.log.Warn("sandbox without its runtime", "sandbox", j.ID, "state", j.State, "error", err)
	}
	if s.gone() != nil {
		return m.finish(ctx, s)
	}
	switch j.State {
	case Running:
		return m.adopt(ctx, s)
	case Pausing:
		return m.recoverPause(ctx, s)
	case Snapshotting:
		return m.recoverSnapshot(ctx, s)
	case Paused:
		m.dropUnused(s)
		return nil
	default:
		return m.finish(ctx, s)
	}
}

// unsynced is how many generations of a journal a host that goes down can lose: one resumed, one
// failed. What is paused is synced.
const unsynced = 2

// rebooted tells a host that was rebooted from an agent that was restarted.
func (m *Manager) rebooted(s *Sandbox) bool {
	old := s.journal().BootID
	return old != "" && old != m.boot
}

// ran says whether a sandbox ran when its journal was written, with nothing that it could be
// woken from as it was then.
func (m *Manager) ran(s *Sandbox) bool {
	switch s.journal().State {
	case Running, Snapshotting:
		return true
	case Pausing:
		return !m.published(s)
	default:
		return false
	}
}

// bootedAt is when the host was started.
func bootedAt() time.Time {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Now()
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}

// thisBoot notes the host's boot. After a reboot the journal may be older than what others were
// told of the sandbox; its generation is raised above that, or nobody would believe it.
func (m *Manager) thisBoot(j *journal) {
	if j.BootID != "" && j.BootID != m.boot {
		j.Generation += unsynced
	}
	j.BootID = m.boot
}

func (m *Manager) noteBoot(s *Sandbox) {
	if s.journal().BootID == m.boot {
		return
	}
	if err := s.update(m.rebooted(s), m.thisBoot); err != nil {
		m.log.Error("write down the host's boot", "sandbox", s.ID(), "error", err)
	}
}

// adopt takes over a running sandbox; one that ended meanwhile is failed.
func (m *Manager) adopt(ctx context.Context, s *Sandbox) error {
	if err := m.takeOver(ctx, s); err != nil {
		return m.lose(ctx, s, "it ended while the agent was down", err)
	}
	s.touch(m.cfg.Clock())
	m.log.Info("sandbox adopted", "sandbox", s.ID())
	m.letRun(ctx, s)
	return nil
}

// letRun undoes what a full disk kept the last agent from writing down: that it froze the sandbox.
// One that runs does not notice.
func (m *Manager) letRun(ctx context.Context, s *Sandbox) {
	if s.journal().Held != nil {
		return // it is let go of when there is room
	}
	ctx, cancel := context.WithTimeout(ctx, quiesceMost)
	defer cancel()
	if err := s.tryThaw(ctx); err != nil {
		m.log.Warn("an adopted sandbox does not answer", "sandbox", s.ID(), "error", err)
	}
}

// lose fails a sandbox that could not be taken over, and keeps its disk. When the agent stops
// meanwhile, that says nothing about the sandbox: it is left to the next one.
func (m *Manager) lose(ctx context.Context, s *Sandbox, what string, cause error) error {
	if ctx.Err() != nil {
		return fault.Wrap(ctx.Err(), "adopt", "sandbox "+s.ID())
	}
	return m.fail(ctx, s, what+": "+fault.Message(cause))
}

// How often, and how far apart, it is tried to take over what may still run: a busy machine
// is slow to answer, and giving up ends a sandbox.
const (
	takeOverTries = 3
	takeOverWait  = time.Second
)

// takeOver gets hold of a running instance, its slot and its guest, and watches it.
func (m *Manager) takeOver(ctx context.Context, s *Sandbox) error {
	for try := 1; ; try++ {
		err := m.tryTakeOver(ctx, s)
		if err == nil || fault.Is(err, fault.NotFound) || try == takeOverTries {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(takeOverWait):
		}
	}
}

func (m *Manager) tryTakeOver(ctx context.Context, s *Sandbox) error {
	j := s.journal()
	in, err := s.rt.Adopt(ctx, s.spec(m), j.Instance)
	if err != nil {
		return err
	}
	slot, err := m.cfg.Network.Adopt(ctx, j.Slot, j.ID)
	if err != nil {
		in.Detach()
		return err
	}
	s.attach(in, slot, guestclient.New(slot.Dial, j.ControlToken))
	m.watch(s, in)
	return nil
}

// recoverPause completes a pause whose capture was published, and thaws one whose was not.
func (m *Manager) recoverPause(ctx context.Context, s *Sandbox) error {
	adopted := m.takeOver(ctx, s)
	if m.published(s) {
		ctx, cancel := undo.Context(ctx)
		defer cancel()
		return m.completePause(ctx, s, Operation{}, "paused; the agent was restarted meanwhile", newStopwatch())
	}
	if adopted != nil {
		return m.lose(ctx, s, "it ended during a pause, while the agent was down", adopted)
	}
	return m.finish(ctx, s)
}

// recoverSnapshot lets the source of a snapshot run on that an earlier agent, or an operation
// which could not end it, left in the middle.
func (m *Manager) recoverSnapshot(ctx context.Context, s *Sandbox) error {
	if in, _, _ := s.parts(); in == nil {
		if err := m.takeOver(ctx, s); err != nil {
			return m.lose(ctx, s, "it ended during a snapshot, while the agent was down", err)
		}
	}
	return m.finishSnapshot(ctx, s)
}
