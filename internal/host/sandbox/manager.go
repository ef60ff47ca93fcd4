package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"regexp"
	"sort"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
	"github.com/roosthq/roost/internal/lifecycle"
)

// Defaults of a sandbox that does not say otherwise.
const (
	DefaultVCPUs       = 1
	DefaultMemoryMB    = 512
	DefaultDiskSizeMB  = 5120
	DefaultIdleTimeout = 300 * time.Second
)

// Config of a Manager; all fields but Absent, DiskLimits, SpaceOf and Clock are required.
type Config struct {
	Data paths.Data
	// Runtimes of this host, best first. Absent says of others why they do not work here.
	Runtimes []runtime.Runtime
	Absent   map[string]error
	Network  *network.Manager
	Images   *image.Store
	UIDs     uids.Block
	// GuestPath is roost-guest as a file, GuestDigest its SHA-256.
	GuestPath, GuestDigest string
	Logger                 *slog.Logger
	// DiskLimits are DefaultDiskLimits when they are zero, and SpaceOf is package function SpaceOf when nil.
	DiskLimits DiskLimits
	SpaceOf    func(path string) (Space, error)
	// Clock is time.Now unless a test says otherwise.
	Clock func() time.Time
}

// Manager owns this machine's sandboxes. Safe for concurrent use.
type Manager struct {
	lifecycle.Base
	cfg  Config
	log  *slog.Logger
	warm singleflight.Group

	mu  sync.RWMutex
	all map[string]*Sandbox
	// building holds the slots of templates' VMs, which no journal names.
	building map[int]bool
	// staging are the snapshots and forks in the making.
	staging map[string]bool
	// discarding are the paths in the trash that this agent is removing.
	discarding sync.Map
	// unreleased are slots that could not be given back yet.
	unreleased []*network.Slot
	gauge      gauge

	// starting is held for reading from before a slot is taken until it is written down, and
	// for writing while processes are ended that nobody wants: theirs may not become a
	// sandbox's uid meanwhile.
	starting sync.RWMutex
	// making is held for reading while something is made of a template or a snapshot that nothing
	// may name yet, and for writing while templates are removed that nothing names.
	making sync.RWMutex
	boot   string
}

// New makes a manager; Start adopts what runs.
func New(cfg Config) *Manager {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.DiskLimits == (DiskLimits{}) {
		cfg.DiskLimits = DefaultDiskLimits
	}
	if cfg.SpaceOf == nil {
		cfg.SpaceOf = SpaceOf
	}
	return &Manager{
		cfg: cfg, log: cfg.Logger.With("component", "sandbox"),
		all: map[string]*Sandbox{}, building: map[int]bool{}, staging: map[string]bool{}, boot: process.BootID(),
		gauge: gauge{crossed: make(chan struct{}, 1)},
	}
}

// Start rebuilds the manager from the journals, then watches idle timeouts and leftovers.
func (m *Manager) Start(ctx context.Context) error {
	run, ok, err := m.Begin(ctx)
	if err != nil || !ok {
		return err
	}
	for _, dir := range []string{m.cfg.Data.Sandboxes(), m.cfg.Data.Trash(), m.cfg.Data.Snapshots()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			m.Stop() // a second Start must not say that it runs
			return fault.Wrap(err, "make", "sandbox directory")
		}
	}
	if err := m.recover(run); err != nil {
		m.Stop()
		return err
	}
	m.Go(func() { m.every(run, idleTick, m.pauseIdle) })
	m.Go(func() { m.every(run, collectTick, m.collect) })
	m.Go(func() { m.watchDisk(run) })
	return nil
}

// Stop lets go of every sandbox; they run on and are adopted by the next Start. Operations
// under way are cancelled and undone first, unless they are past their commit.
func (m *Manager) Stop() {
	m.Base.Stop()
	for _, s := range m.list() {
		if in, _, guest := s.parts(); in != nil {
			guest.Close()
			in.Detach()
		}
	}
}

// call begins an operation: Stop cancels it and waits for its end.
func (m *Manager) call(ctx context.Context) (context.Context, func(), error) {
	ctx, done, err := m.Call(ctx)
	if err != nil {
		return nil, nil, errStopping
	}
	return ctx, done, nil
}

// enter begins an operation on a sandbox, whose gate it takes.
func (m *Manager) enter(ctx context.Context, id string) (*Sandbox, context.Context, func(), error) {
	ctx, done, err := m.call(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	s, ctx, leave, err := m.take(ctx, id)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return s, ctx, func() { leave(); done() }, nil
}

func (m *Manager) take(ctx context.Context, id string) (*Sandbox, context.Context, func(), error) {
	s, err := m.lookup(id)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	if err = s.gone(); err == nil && m.has(s) {
		err = fault.Wrap(m.finish(ctx, s), "finish an earlier change of", "sandbox "+id)
	}
	if err == nil && !m.has(s) {
		// It was destroyed while this waited.
		_, err = m.lookup(id)
	}
	if err != nil {
		leave()
		return nil, nil, nil, err
	}
	return s, ctx, leave, nil
}

// has says whether s is still the sandbox of its id.
func (m *Manager) has(s *Sandbox) bool {
	id := s.ID()
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.all[id] == s
}

// every runs a pass of a loop until ctx ends; a pass's error is logged, not fatal.
func (m *Manager) every(ctx context.Context, tick time.Duration, pass func(context.Context) error) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := pass(ctx); err != nil && !errors.Is(err, context.Canceled) {
				m.log.Error("loop", "error", err)
			}
		}
	}
}

var idPattern = regexp.MustCompile(`^[a-z0-9]{20}$`)

// lookup finds a sandbox by its exact id.
func (m *Manager) lookup(id string) (*Sandbox, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if s, ok := m.all[id]; ok {
		return s, nil
	}
	return nil, fault.New(fault.NotFound, "find", "sandbox "+id, "this host has none of that id").
		WithHint("list them: roost ls")
}

func (m *Manager) list() []*Sandbox {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*Sandbox, 0, len(m.all))
	for _, s := range m.all {
		out = append(out, s)
	}
	return out
}

func (m *Manager) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all, id)
}

// Get describes a sandbox.
func (m *Manager) Get(id string) (View, error) {
	s, err := m.lookup(id)
	if err != nil {
		return View{}, err
	}
	return s.View(), nil
}

// List describes all sandboxes, oldest first.
func (m *Manager) List() []View {
	all := m.list()
	views := make([]View, len(all))
	for i, s := range all {
		views[i] = s.View()
	}
	sort.Slice(views, func(i, k int) bool { return views[i].CreatedAt.Before(views[k].CreatedAt) })
	return views
}

// Console is the kept end of a sandbox's console, also after its death.
func (m *Manager) Console(id string) ([]byte, error) {
	s, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	if in, _, _ := s.parts(); in != nil {
		return in.Console()
	}
	return s.rt.ConsoleOf(s.spec(m))
}

// SetIdleTimeout changes after how long without activity a sandbox pauses; 0 is never.
func (m *Manager) SetIdleTimeout(ctx context.Context, op Operation, id string, idle time.Duration) (View, error) {
	if err := checkIdle("set timeout of", idle); err != nil {
		return View{}, err
	}
	s, _, leave, err := m.enter(ctx, id)
	if err != nil {
		return View{}, err
	}
	defer leave()
	if j := s.journal(); !j.did(op.ID) {
		if err := fence(j, op); err != nil {
			return View{}, err
		}
		s.touch(m.cfg.Clock())
		err = s.update(j.State == Paused, func(j *journal) {
			j.note(op.ID)
			j.IdleTimeout = idle
			j.ActiveAt = m.cfg.Clock()
		})
	}
	return s.View(), err
}

func checkIdle(op string, idle time.Duration) error {
	if idle < 0 {
		return fault.New(fault.Invalid, op, "sandbox", "idle_timeout is "+idle.String()+": it cannot be negative; 0 is never")
	}
	return nil
}
