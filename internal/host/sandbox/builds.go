package sandbox

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// retire removes the builds of a runtime that nothing needs any more: no capture, no instance
// and no template's memory. What cannot be read may need any of them, so then none goes. What
// starts meanwhile starts in the current build, which stays, or from a capture, which is seen.
// While something is being made, of what may be gone already, it waits for the next time.
func (m *Manager) retire() error {
	if !m.making.TryLock() {
		return nil
	}
	defer m.making.Unlock()
	var errs []error
	for _, rt := range m.cfg.Runtimes {
		keeper, keeps := rt.(runtime.Keeper)
		if !keeps {
			continue
		}
		used, err := m.needed(rt, keeper)
		if err == nil {
			err = keeper.Retire(used)
		}
		errs = append(errs, fault.Wrap(err, "retire builds of", "runtime "+rt.Name()))
	}
	return errors.Join(errs...)
}

// needed is every file that something of a runtime stands on.
func (m *Manager) needed(rt runtime.Runtime, keeper runtime.Keeper) (map[string]bool, error) {
	used := map[string]bool{}
	add := func(files []string, err error) error {
		for _, f := range files {
			used[f] = true
		}
		return err
	}
	for _, s := range m.list() {
		// The instance first: a pause that is published meanwhile needs what its instance did.
		if j := s.journal(); j.Runtime == rt.Name() && j.Instance != nil {
			if err := add(keeper.NeededBy(j.Instance)); err != nil {
				return nil, err
			}
		}
		captures, err := capturesOf(s, rt.Name())
		if err != nil {
			return nil, err
		}
		for _, c := range captures {
			if err := add(rt.Files(c)); err != nil {
				return nil, err
			}
		}
	}
	snapshots, err := m.snapshotsOf(rt.Name())
	if err != nil {
		return nil, err
	}
	for _, c := range snapshots {
		if err := add(rt.Files(c)); err != nil {
			return nil, err
		}
	}
	warm, err := m.warmOf(rt)
	if err != nil {
		return nil, err
	}
	for _, c := range warm {
		if err := add(rt.Files(c)); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// capturesOf are a sandbox's published captures that a runtime made, whatever its journal says.
func capturesOf(s *Sandbox, name string) ([]runtime.Capture, error) {
	dirs, err := filepath.Glob(filepath.Join(s.dir.Captures(), "[0-9]*"))
	if err != nil {
		return nil, err
	}
	var out []runtime.Capture
	for _, dir := range dirs {
		c, man, err := readCapture(dir)
		switch {
		case errors.Is(err, os.ErrNotExist): // superseded: its manifest goes first, or with the rest
		case err != nil:
			return nil, err
		case man.Runtime == name:
			out = append(out, c)
		}
	}
	return out, nil
}

// snapshotsOf are the snapshots that a runtime made.
func (m *Manager) snapshotsOf(name string) ([]runtime.Capture, error) {
	ids, err := m.snapshotIDs()
	if err != nil {
		return nil, err
	}
	var out []runtime.Capture
	for _, id := range ids {
		c, man, err := readCapture(m.cfg.Data.Snapshot(id))
		switch {
		case errors.Is(err, os.ErrNotExist): // deleted since
		case err != nil:
			return nil, err
		case man.Runtime == name:
			out = append(out, c)
		}
	}
	return out, nil
}

// warmOf is the templates' memory that a create can still start from. What another build made is
// nobody's: no create will ask for it, and no sandbox stands on it.
func (m *Manager) warmOf(rt runtime.Runtime) ([]runtime.Capture, error) {
	templates, err := m.cfg.Images.List()
	if err != nil {
		return nil, err
	}
	var out []runtime.Capture
	for _, t := range templates {
		all, err := m.cfg.Images.Warms(t)
		if err != nil {
			return nil, err
		}
		for _, w := range all {
			size := runtime.Resources{VCPUs: w.VCPUs, MemoryMB: w.MemoryMB, DiskSizeMB: w.Key.DiskMB}
			if w.Key == m.warmKey(rt, size, t) {
				out = append(out, runtime.Capture{Dir: w.Dir, Record: w.Record})
			}
		}
	}
	return out, nil
}
