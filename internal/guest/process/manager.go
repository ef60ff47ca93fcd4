package process

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/activity"
	"github.com/roosthq/roost/internal/guest/cgroup"
	"github.com/roosthq/roost/internal/guest/reaper"
)

// Ended processes are kept for late Connects, at most recentMax and for recentFor.
const (
	recentMax = 32
	recentFor = 5 * time.Minute
)

// Spec is a process to start.
type Spec struct {
	Cmd  string
	Args []string
	Envs map[string]string
	// Cwd is the working directory; empty means the home.
	Cwd string
	Tag *string
	// Terminal is the size of the PTY; nil means pipes.
	Terminal *Size
	// Stdin: the process gets an input. Otherwise it reads /dev/null.
	Stdin bool
	User  account.User
	// Deadline is when the process and its descendants are killed; zero means never.
	Deadline time.Time
}

// Manager starts and finds processes.
type Manager struct {
	reaper   *reaper.Reaper
	tree     *cgroup.Tree
	activity *activity.Clock

	mu      sync.Mutex
	running map[int]*Process
	recent  []*Process // oldest first
}

// NewManager makes a manager of processes in tree.
func NewManager(r *reaper.Reaper, t *cgroup.Tree, a *activity.Clock) *Manager {
	return &Manager{reaper: r, tree: t, activity: a, running: map[int]*Process{}}
}

// Start starts a process. The subscription gets all of its output; detach it when done.
func (m *Manager) Start(ctx context.Context, spec Spec) (*Process, *Subscription, error) {
	target, err := resolve(spec)
	if err != nil {
		return nil, nil, err
	}
	leave, err := m.tree.Enter(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	p, sub, err := m.spawn(spec, target)
	if err != nil {
		return nil, nil, err
	}
	m.activity.Touch()
	return p, sub, nil
}

func (m *Manager) spawn(spec Spec, target target) (*Process, *Subscription, error) {
	streams, err := openStreams(spec)
	if err != nil {
		return nil, nil, err
	}
	leaf, err := m.tree.NewLeaf()
	if err != nil {
		streams.closeAll()
		return nil, nil, err
	}
	p := newProcess(m, spec, target.cwd, leaf, streams)
	sub := p.attach(false)
	// The lock makes the pid findable before anybody can have learnt it.
	m.mu.Lock()
	defer m.mu.Unlock()
	pid, ended, err := m.reaper.Start(func() (int, error) {
		return syscall.ForkExec(target.path, append([]string{spec.Cmd}, spec.Args...), target.attr(spec, streams, leaf))
	})
	leaf.Started()
	streams.closeChild()
	if err != nil {
		streams.closeAll()
		leaf.Remove()
		return nil, nil, account.FromOS(err, "start process", "'"+spec.Cmd+"'")
	}
	p.pid = pid
	m.running[pid] = p
	p.run(ended)
	return p, sub, nil
}

// Find finds a process by its pid: a running one, or one that ended recently.
func (m *Manager) Find(pid uint32) (*Process, error) {
	return m.find("pid "+strconv.FormatUint(uint64(pid), 10), func(p *Process) bool { return p.pid == int(pid) })
}

// FindTag finds the process started last with a tag, running ones first.
func (m *Manager) FindTag(tag string) (*Process, error) {
	return m.find("tag '"+tag+"'", func(p *Process) bool { return p.spec.Tag != nil && *p.spec.Tag == tag })
}

func (m *Manager) find(object string, match func(*Process) bool) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	var found *Process
	for _, p := range m.running {
		if match(p) && (found == nil || p.started.After(found.started)) {
			found = p
		}
	}
	for _, p := range slices.Backward(m.recent) {
		if found == nil && match(p) {
			found = p
		}
	}
	if found == nil {
		return nil, fault.New(fault.NotFound, "find process with", object, "no such process")
	}
	return found, nil
}

// Running lists the running processes by age.
func (m *Manager) Running() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*Process, 0, len(m.running))
	for _, p := range m.running {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *Process) int { return a.started.Compare(b.started) })
	return list
}

func (m *Manager) retire(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running[p.pid] == p {
		delete(m.running, p.pid)
	}
	m.recent = append(m.recent, p)
	m.forget()
}

// forget drops what is too old or too much. The lock is held.
func (m *Manager) forget() {
	drop := max(0, len(m.recent)-recentMax)
	for drop < len(m.recent) && time.Since(m.recent[drop].endedAt) > recentFor {
		drop++
	}
	m.recent = slices.Delete(m.recent, 0, drop)
}
