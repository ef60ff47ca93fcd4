package sandbox

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
)

// reserved is how much the reserve holds: a file beside the sandboxes with blocks of its own, which a
// pause on a full disk gets. The file is all that there is to know of it.
func (m *Manager) reserved() int64 {
	st, err := os.Stat(m.cfg.Data.Reserve())
	if err != nil {
		return 0
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// fillReserve makes the reserve, or what is missing of it, when there is room for that.
func (m *Manager) fillReserve(d Disk) error {
	missing := d.ReserveWanted - d.Reserve
	if missing <= 0 || d.UsedPercent >= d.Limits.Resume || m.gauge.unreservable {
		return nil
	}
	m.gauge.reserving.Lock()
	defer m.gauge.reserving.Unlock()
	if err := failpoint.Hit("sandbox.fill.reserve"); err != nil {
		return err
	}
	path := m.cfg.Data.Reserve()
	err := allocate(path, d.ReserveWanted)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		m.log.Warn("the file system takes no reservations: a pause on a full disk may fail", "path", path)
		m.gauge.mu.Lock()
		m.gauge.unreservable = true
		m.gauge.mu.Unlock()
		return os.Remove(path)
	case err != nil:
		// It must not be what fills the disk.
		return errors.Join(fault.Wrap(err, "make", "reserve for pauses"), os.Remove(path))
	}
	return nil
}

func allocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, size)
}

// giveReserve gives the reserve to a pause, when the disk is full. It is made again when there is
// room.
func (m *Manager) giveReserve() error {
	d, err := m.look()
	if err != nil || d.State != FillFull || d.Reserve == 0 {
		return err
	}
	m.gauge.reserving.Lock()
	defer m.gauge.reserving.Unlock()
	if err := os.Remove(m.cfg.Data.Reserve()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, "give back", "reserve for pauses")
	}
	m.log.Info("the reserve is given to a pause", "bytes", d.Reserve)
	return failpoint.Hit("sandbox.fill.released")
}

// noteRoom is more than some journals take.
const noteRoom = 1 << 20

// lendReserve gives a little of the reserve to a journal that has no room. All of it would be what the
// writers that still run fill before the pause that it is for.
func (m *Manager) lendReserve() error {
	m.gauge.reserving.Lock()
	defer m.gauge.reserving.Unlock()
	path := m.cfg.Data.Reserve()
	st, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, max(st.Size()-noteRoom, 0))
	}
	return fault.Wrap(err, "lend of", "reserve for pauses")
}
