package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/roosthq/roost/internal/host/uids"
)

const collectTick = time.Minute

// collect compares what exists on the host with what the journals want and removes the rest:
// slots and processes of this installation that no sandbox holds.
func (m *Manager) collect(ctx context.Context) error {
	// Read what runs before what is wanted: a start that happens in between is then wanted
	// and not yet seen, never seen and not yet wanted.
	running, err := m.cfg.UIDs.Running()
	if err != nil {
		return err
	}
	slots, busy := m.wanted()
	errs := []error{m.cfg.Network.Collect(ctx, slots)}
	for uid := range running {
		if busy[uid] {
			continue
		}
		m.log.Warn("ending processes that belong to no sandbox", "uid", uid)
		errs = append(errs, uids.Kill(ctx, uid))
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
