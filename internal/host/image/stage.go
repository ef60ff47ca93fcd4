package image

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// workspace is a private directory under stage/ on the store's file system, so that what is
// made in it can be renamed into place. Its lock tells other processes that its owner lives.
type workspace struct {
	dir  string
	lock *os.File
}

func (s *Store) newWorkspace() (*workspace, error) {
	w := &workspace{}
	// Under the store's lock, so that no sweep sees the directory before it is locked.
	err := s.locked(func() error {
		dir, err := os.MkdirTemp(s.path(stageDir), "")
		if err != nil {
			return err
		}
		w.dir = dir
		w.lock, err = os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return errors.Join(err, os.Remove(dir))
		}
		return flock(w.lock, syscall.LOCK_EX|syscall.LOCK_NB)
	})
	return w, fail(err, "make", "stage in "+s.dir)
}

func (w *workspace) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

func (w *workspace) mkdir(name string) (string, error) {
	dir := w.path(name)
	return dir, fail(os.Mkdir(dir, 0o700), "make", dir)
}

// remove is idempotent; what was renamed away is no longer there and stays.
func (w *workspace) remove() error {
	if w.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(w.dir), removeIfThere(w.dir+".lock"), w.lock.Close())
	w.lock = nil
	return fail(err, "remove stage", w.dir)
}
