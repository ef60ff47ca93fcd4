package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
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
		files = []string{s.dir.Disk()}
	}
	for _, f := range files {
		switch {
		case strings.HasPrefix(f, dir+"/"): // counted
		case strings.HasPrefix(f, s.dir.Captures()+"/"):
			u.MemoryBytes += allocated(f)
		case strings.HasPrefix(f+"/", s.dir.Disk()+"/"):
			u.DiskBytes += allocated(f)
		}
	}
	return u
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

// dropUnused removes captures and disk files that the current capture does not stand on. What
// it cannot remove waits for the next time.
func (m *Manager) dropUnused(s *Sandbox) {
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

// kept tells the files that a sandbox's current capture stands on, all of which are there.
func (m *Manager) kept(s *Sandbox) (func(path string) bool, error) {
	current := s.dir.Capture(s.journal().Capture)
	c, _, err := readCapture(current)
	if err != nil {
		return nil, err
	}
	files, err := s.rt.Files(c)
	if err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return nil, fault.Wrap(err, "look at", "a file of the capture")
		}
		keep[f] = true
	}
	return func(path string) bool { return keep[path] || strings.HasPrefix(path, current+"/") }, nil
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
