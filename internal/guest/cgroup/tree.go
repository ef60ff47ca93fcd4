// Package cgroup is the tree that user processes live in: ROOT/user, with one leaf for each
// process that was started and all its descendants. Needs cgroup v2, no controllers, and the
// kernel's freezer where there is one (gVisor has none: see signalFreezer).
//
// # States
//
// A Tree is open or frozen. Freeze first closes the gate: a child cloned into a frozen cgroup
// would stop before its exec and hold up the parent's fork, so no start may be under way. A
// start that waits at the gate goes on after Thaw, or fails after Abort (the sandbox became
// another one; the request belongs to a life that is over).
//
// # Failure rules
//
// A Freeze that fails leaves the tree thawed and open. Kill works on a frozen tree. Remove of a
// leaf that still has processes keeps it for a later sweep: a daemon outlives the command that
// started it.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Tree is ROOT/user.
type Tree struct {
	path    string
	gate    gate
	freezer freezer

	mu      sync.Mutex
	next    int
	lingers []string // leaves whose command has ended but whose daemons live
}

// Open makes ROOT/user, thawed.
func Open(root string) (*Tree, error) { return open(root, newFreezer) }

func open(root string, newFreezer func(*Tree) (freezer, error)) (*Tree, error) {
	path := filepath.Join(root, "user")
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fault.Wrap(err, "make cgroup", path)
	}
	t := &Tree{path: path, gate: gate{changed: make(chan struct{})}}
	var err error
	if t.freezer, err = newFreezer(t); err != nil {
		return nil, err
	}
	return t, t.freezer.thaw()
}

// Enter waits until the tree is thawed and holds off Freeze until leave is called.
func (t *Tree) Enter(ctx context.Context) (leave func(), err error) { return t.gate.enter(ctx) }

// Abort fails every start that waits at the gate.
func (t *Tree) Abort() { t.gate.abort() }

// Freeze stops every process of the tree and returns when the kernel says they are stopped.
func (t *Tree) Freeze(ctx context.Context) error {
	if err := t.gate.close(ctx); err != nil {
		return fault.Wrap(err, "freeze", "user processes")
	}
	if err := t.freezer.freeze(ctx); err != nil {
		_ = t.Thaw()
		return fault.Wrap(err, "freeze", "user processes")
	}
	return nil
}

// Thaw lets the tree run and opens the gate.
func (t *Tree) Thaw() error {
	if err := t.freezer.thaw(); err != nil {
		return err
	}
	t.gate.open()
	return nil
}

// Processes counts the processes of the tree.
func (t *Tree) Processes() int { return len(t.pids()) }

// pids are the processes of the tree.
func (t *Tree) pids() []int {
	var out []int
	_ = filepath.WalkDir(t.path, func(path string, d fs.DirEntry, _ error) error {
		if d == nil || !d.IsDir() {
			return nil
		}
		lines, _ := os.ReadFile(filepath.Join(path, "cgroup.procs")) // none: it was just removed
		for line := range strings.FieldsSeq(string(lines)) {
			if pid, err := strconv.Atoi(line); err == nil {
				out = append(out, pid)
			}
		}
		return nil
	})
	return out
}

// Close kills everything in the tree and removes it.
func (t *Tree) Close() error {
	err := t.write("cgroup.kill", "1")
	deadline := time.Now().Add(5 * time.Second)
	for {
		if rm := removeAll(t.path); rm == nil || time.Now().After(deadline) {
			return rm
		}
		if err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// removeAll removes a cgroup and those below it.
func removeAll(path string) error {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			if err := removeAll(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(path); err != nil && err != unix.ENOENT {
		return fault.Wrap(err, "remove cgroup", path)
	}
	return nil
}

func (t *Tree) write(file, value string) error {
	path := filepath.Join(t.path, file)
	return fault.Wrap(os.WriteFile(path, []byte(value), 0), "write", path)
}

// waitEvent waits for a line of cgroup.events; the kernel wakes pollers when one changes.
func (t *Tree) waitEvent(ctx context.Context, line string) error {
	f, err := os.Open(filepath.Join(t.path, "cgroup.events"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return err
		}
		if strings.Contains(string(buf[:n]), line) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("no %q in cgroup.events: %w", line, err)
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		_, _ = unix.Poll(fds, 20)
	}
}

// Leaf is the cgroup of one started process.
type Leaf struct {
	tree *Tree
	path string
	dir  *os.File
}

// NewLeaf makes the next leaf.
func (t *Tree) NewLeaf() (*Leaf, error) {
	t.sweep()
	t.mu.Lock()
	t.next++
	path := filepath.Join(t.path, "p-"+strconv.Itoa(t.next))
	t.mu.Unlock()
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fault.Wrap(err, "make cgroup", path)
	}
	dir, err := os.Open(path)
	if err != nil {
		_ = unix.Rmdir(path)
		return nil, fault.Wrap(err, "open cgroup", path)
	}
	return &Leaf{tree: t, path: path, dir: dir}, nil
}

// FD is for SysProcAttr.CgroupFD, until Started.
func (l *Leaf) FD() int { return int(l.dir.Fd()) }

// Started gives the descriptor back.
func (l *Leaf) Started() { _ = l.dir.Close() }

// Kill ends every process of the leaf, also those being forked now.
func (l *Leaf) Kill() error {
	path := filepath.Join(l.path, "cgroup.kill")
	return fault.Wrap(os.WriteFile(path, []byte("1"), 0), "write", path)
}

// Remove removes the leaf now, or later when daemons still live in it.
func (l *Leaf) Remove() {
	_ = l.dir.Close()
	if err := unix.Rmdir(l.path); errors.Is(err, unix.EBUSY) {
		l.tree.mu.Lock()
		l.tree.lingers = append(l.tree.lingers, l.path)
		l.tree.mu.Unlock()
	}
}

// sweep removes the lingering leaves whose last process has gone.
func (t *Tree) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.lingers[:0]
	for _, path := range t.lingers {
		if errors.Is(unix.Rmdir(path), unix.EBUSY) {
			kept = append(kept, path)
		}
	}
	t.lingers = kept
}
