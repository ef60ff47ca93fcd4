package sandbox

import (
	"errors"
	"os"
	"path/filepath"
)

// discard moves a directory to the trash, from where empty removes it; until then it is no leak.
// What a dead agent leaves there goes at the next start.
func (m *Manager) discard(path, name string) (empty func(), err error) {
	trash := filepath.Join(m.cfg.Data.Trash(), name+"-"+randomHex(4))
	m.discarding.Store(trash, true)
	if err := os.Rename(path, trash); err != nil {
		m.discarding.Delete(trash)
		return func() {}, err
	}
	return func() {
		defer m.discarding.Delete(trash)
		if err := os.RemoveAll(trash); err != nil {
			m.log.Error("trash stays until the next start", "path", trash, "error", err)
		}
	}, nil
}

// emptyTrash removes what a dead agent left.
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
