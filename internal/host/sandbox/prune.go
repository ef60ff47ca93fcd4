package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// pausedUsage is usageOf the pending capture.
func (m *Manager) pausedUsage(s *Sandbox) runtime.Usage { return m.usageOf(s, s.journal().Pending) }

// usageOf counts what a capture really takes: itself, and what it stands on of the sandbox's own
// files. The rest is about to be dropped.
func (m *Manager) usageOf(s *Sandbox, capture int) runtime.Usage {
	dir := s.dir.Capture(capture)
	u := runtime.Usage{MemoryBytes: allocated(dir)}
	c, _, err := readCapture(dir)
	if err != nil {
		return u // only a figure
	}
	files, err := s.rt.Files(c)
	if err != nil {
		u.DiskBytes = allocated(s.dir.Disk())
		return u
	}
	count, own := fileSet{}, fileSet{}
	for _, f := range files {
		_ = count.add(f) // what is not there takes no space
	}
	_ = own.addAll(dir)
	for id := range own { // counted
		delete(count, id)
	}
	u.MemoryBytes += count.allocated(s.dir.Captures())
	u.DiskBytes = count.allocated(s.dir.Disk())
	return u
}

// fileID is a file, whatever its names. Records name files by absolute paths, and the data
// directory may be reached by another name by now: comparing names would lose what is in use.
type fileID struct{ device, inode uint64 }

// idOf is of a file that was looked at.
func idOf(info os.FileInfo) fileID {
	st := info.Sys().(*syscall.Stat_t)
	return fileID{device: st.Dev, inode: st.Ino}
}

// fileSet is a set of files.
type fileSet map[fileID]bool

// add takes a file in, and what it leads to when it is a link.
func (f fileSet) add(path string) error {
	for _, look := range []func(string) (os.FileInfo, error){os.Lstat, os.Stat} {
		info, err := look(path)
		if err != nil {
			return err
		}
		f[idOf(info)] = true
	}
	return nil
}

// addAll takes in every file below a directory.
func (f fileSet) addAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return f.add(path)
	})
}

// has says whether the file of that name is in the set. One that cannot be looked at is: who asks
// is about to remove it.
func (f fileSet) has(path string) bool {
	info, err := os.Lstat(path)
	return err != nil || f[idOf(info)]
}

// allocated sums the real use of the set's files below a directory, each once.
func (f fileSet) allocated(dir string) int64 {
	var total int64
	seen := fileSet{}
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // what vanished meanwhile takes no space
		}
		info, err := e.Info()
		if err != nil || !f[idOf(info)] || seen[idOf(info)] {
			return nil //nolint:nilerr // likewise
		}
		seen[idOf(info)] = true
		total += allocated(path)
		return nil
	})
	return total
}

// allocated sums blocks × 512 of a file or below a directory: real use, not apparent size.
func allocated(path string) int64 {
	var total int64
	_ = filepath.WalkDir(path, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what vanished meanwhile takes no space
		}
		if info, err := d.Info(); err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return total
}

// dropUnused removes captures and disk files that nothing stands on any more: not the current
// capture, and nothing that is kept beside it. What it cannot remove waits for the next time.
//
// Only of a sandbox that is paused, or not yet started: a dead one's last disk is named by no
// capture, nor is a running one's.
func (m *Manager) dropUnused(s *Sandbox) {
	if state := s.journal().State; state != Paused && state != Creating {
		return
	}
	if err := m.tryDropUnused(s); err != nil {
		m.log.Warn("superseded captures stay", "sandbox", s.ID(), "error", err)
	}
}

func (m *Manager) tryDropUnused(s *Sandbox) error {
	keep, err := m.kept(s)
	if err != nil {
		return err
	}
	return errors.Join(prune(s.dir.Captures(), keep), prune(s.dir.Disk(), keep))
}

// kept tells the files that must stay: those that the current capture stands on, all of which are
// there, and those of the one to fall back to. Of a mended sandbox all do.
func (m *Manager) kept(s *Sandbox) (func(path string) bool, error) {
	j := s.journal()
	everything := func(string) bool { return true }
	keep := fileSet{}
	if err := m.standOn(s, j.Capture, keep); err != nil {
		return nil, err
	}
	if j.Mended {
		return everything, nil
	}
	if whole := j.Fallback == 0 || m.standOn(s, j.Fallback, keep) == nil; !whole {
		return everything, nil // whatever is wrong with it may be found to be nothing
	}
	return keep.has, nil
}

// standOn takes in the files of a capture, and those that it stands on.
func (m *Manager) standOn(s *Sandbox, capture int, keep fileSet) error {
	dir := s.dir.Capture(capture)
	c, _, err := readCapture(dir)
	if err != nil {
		return err
	}
	files, err := s.rt.Files(c)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := keep.add(f); err != nil {
			return fault.Wrap(err, "look at", "a file of the capture")
		}
	}
	return fault.Wrap(keep.addAll(dir), "look at", "the files of the capture")
}

// prune deletes every file below dir that is not kept, and directories left empty.
func prune(dir string, keep func(string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			if err := prune(path, keep); err != nil {
				return err
			}
			_ = os.Remove(path) // only when it is empty
		case !keep(path):
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}
