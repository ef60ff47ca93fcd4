package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stopPoll is how often a process that was told to stop is looked at, and stopAgain after how
// many looks it is told again: gVisor drops a stop that meets an execve.
const (
	stopPoll  = 200 * time.Microsecond
	stopAgain = 25
)

// signalFreezer stops processes with SIGSTOP and continues them with SIGCONT. Unlike the
// kernel's freezer it can be seen: by a parent that waits for stopped children, and by a
// handler of SIGCONT. So parents are stopped before their children and continued after them: a
// shell finds its job running, as it left it. What was stopped by somebody else (Ctrl-Z) stays
// stopped.
type signalFreezer struct {
	tree *Tree
	proc string
	kill func(pid int, sig unix.Signal) error

	mu      sync.Mutex
	stopped []process // parents first
}

// process is one process at one look at it. Its start time tells it from a later one of the
// same number.
type process struct {
	pid, parent int
	start       string
	// halted: it does not run, since all its threads are stopped or it is dead.
	halted bool
}

func newSignalFreezer(t *Tree) (freezer, error) {
	return &signalFreezer{tree: t, proc: "/proc", kill: unix.Kill}, nil
}

// freeze stops level after level until none runs. Of a process that has ended since the list
// was read nobody knows whether it forked before: only a second list that is the same says that
// there is nothing new.
func (f *signalFreezer) freeze(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var before map[int]process
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("processes start faster than they can be stopped: %w", err)
		}
		all := f.list()
		level := topmost(running(all))
		if len(level) == 0 && maps.Equal(all, before) {
			return nil
		}
		before = all
		// Noted before it is done: a thaw after an error continues them all.
		f.stopped = append(f.stopped, level...)
		for _, p := range level {
			if err := f.stop(p.pid); err != nil {
				return err
			}
		}
		for _, p := range level {
			if err := f.waitStopped(ctx, p); err != nil {
				return err
			}
		}
	}
}

func (f *signalFreezer) stop(pid int) error {
	if err := f.kill(pid, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	return nil
}

// waitStopped waits until p does not run. One that waits for its vfork'ed child goes on until
// that has called exec: the child is of a later level and still runs.
func (f *signalFreezer) waitStopped(ctx context.Context, p process) error {
	for looks := 1; ; looks++ {
		now, ok := f.look(p.pid)
		if !ok || now.halted || now.start != p.start {
			return nil
		}
		if looks%stopAgain == 0 {
			if err := f.stop(p.pid); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d does not stop: %w", p.pid, ctx.Err())
		case <-time.After(stopPoll):
		}
	}
}

func (f *signalFreezer) thaw() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, p := range slices.Backward(f.stopped) {
		if now, ok := f.look(p.pid); !ok || now.start != p.start {
			continue
		}
		if err := f.kill(p.pid, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("continue process %d: %w", p.pid, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	f.stopped = nil
	return nil
}

// list looks at every process of the tree; one that is gone has no start.
func (f *signalFreezer) list() map[int]process {
	out := map[int]process{}
	for _, pid := range f.tree.pids() {
		p, ok := f.look(pid)
		if !ok {
			p = process{pid: pid, halted: true}
		}
		out[pid] = p
	}
	return out
}

func running(all map[int]process) map[int]process {
	out := map[int]process{}
	for pid, p := range all {
		if !p.halted {
			out[pid] = p
		}
	}
	return out
}

// topmost are those whose parent is not among them.
func topmost(all map[int]process) []process {
	var out []process
	for _, p := range all {
		if _, ok := all[p.parent]; !ok {
			out = append(out, p)
		}
	}
	return out
}

// look reads a process; ok is false when it is gone.
func (f *signalFreezer) look(pid int) (p process, ok bool) {
	dir := filepath.Join(f.proc, strconv.Itoa(pid))
	p, ok = readStat(filepath.Join(dir, "stat"))
	if !ok || !p.halted {
		return p, ok
	}
	// The process's state is its first thread's: the others may not have stopped yet.
	threads, _ := os.ReadDir(filepath.Join(dir, "task"))
	for _, thread := range threads {
		if t, ok := readStat(filepath.Join(dir, "task", thread.Name(), "stat")); ok && !t.halted {
			p.halted = false
		}
	}
	return p, true
}

// Fields of /proc/PID/stat behind the name, counted from the state.
const (
	statParent = 1
	statStart  = 19
)

// readStat reads /proc/PID/stat. The name in it may hold anything, brackets and newlines too.
func readStat(path string) (p process, ok bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return p, false
	}
	open, end := bytes.IndexByte(raw, '('), bytes.LastIndexByte(raw, ')')
	if open < 1 || end < open {
		return p, false
	}
	fields := strings.Fields(string(raw[end+1:]))
	if len(fields) <= statStart {
		return p, false
	}
	p.pid, _ = strconv.Atoi(strings.TrimSpace(string(raw[:open])))
	p.parent, _ = strconv.Atoi(fields[statParent])
	p.start = fields[statStart]
	p.halted = strings.ContainsAny(fields[0], "TtZX")
	return p, true
}
