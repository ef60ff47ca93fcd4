package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
)

const (
	collectTick = time.Minute
	// keepUnused is how long a template's memory stays loaded for the next create.
	keepUnused = 10 * time.Minute
)

// collect finishes what nobody works on, compares what exists on the host with what the
// journals want, and removes the rest: slots and processes of this installation that no sandbox
// holds, and builds that none needs.
func (m *Manager) collect(ctx context.Context) error {
	err := m.finishAll(ctx)
	m.releaseAgain(ctx)
	m.compactAll(ctx)
	slots, _ := m.wanted()
	for _, rt := range m.cfg.Runtimes {
		if t, ok := rt.(runtime.Trimmer); ok {
			err = errors.Join(err, t.Trim(keepUnused))
		}
	}
	return errors.Join(err, m.retire(), m.sweepTemplates(), m.cfg.Network.Collect(ctx, slots), m.collectProcesses(ctx))
}

// collectProcesses ends what runs under a uid that no journal names. No slot, and so no uid, is
// taken meanwhile: what is unwanted when it is looked at is unwanted when it is killed.
func (m *Manager) collectProcesses(ctx context.Context) error {
	m.starting.Lock()
	defer m.starting.Unlock()
	running, err := m.cfg.UIDs.Running()
	if err != nil {
		return err
	}
	_, busy := m.wanted()
	var errs []error
	for uid := range running {
		if !busy[uid] {
			m.log.Warn("ending processes that belong to no sandbox", "uid", uid)
			errs = append(errs, uids.Kill(ctx, uid))
		}
	}
	return errors.Join(errs...)
}

// wanted is the slots in use, by sandbox, and their uids.
func (m *Manager) wanted() (map[int]string, map[int]bool) {
	slots, busy := map[int]string{}, map[int]bool{}
	m.mu.RLock()
	for slot := range m.building {
		slots[slot] = "template"
		busy[m.cfg.UIDs.UID(slot)] = true
	}
	m.mu.RUnlock()
	for _, s := range m.list() {
		if j := s.journal(); j.Slot != noSlot {
			slots[j.Slot] = j.ID
			busy[m.cfg.UIDs.UID(j.Slot)] = true
		}
	}
	return slots, busy
}
