package network

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/lifecycle"
)

// Manager owns the slots of one installation on one host.
type Manager struct {
	lifecycle.Base
	opt      Options
	log      *slog.Logger
	deny     *denyList
	upstream *upstream
	host     *host        // while serving
	subnet   netip.Prefix // while serving

	refill chan struct{} // asks the pool's loop to look
	filled func()        // tests: the pool is full

	mu      sync.Mutex
	serving bool
	// busy are the numbers that this process makes, has, or could not get rid of.
	busy map[int]bool
	// occupied are numbers that something unknown stands on; Collect clears them.
	occupied map[int]bool
	pool     []*Slot
	held     map[int]*Slot
	owners   map[string]int // sandbox → slot number, 0 while it is being given one
}

// New checks the options; it touches nothing.
func New(opt Options) (*Manager, error) {
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	opt = opt.withDefaults()
	deny, err := newDenyList(opt.DeniedCIDRs)
	if err != nil {
		return nil, err
	}
	servers, err := parseResolvers(opt.Resolvers)
	if err != nil {
		return nil, err
	}
	return &Manager{
		opt: opt, log: opt.Logger, deny: deny,
		upstream: &upstream{servers: servers, timeout: opt.DNSTimeout},
		refill:   make(chan struct{}, 1),
		busy:     map[int]bool{}, occupied: map[int]bool{},
		held: map[int]*Slot{}, owners: map[string]int{},
	}, nil
}

// Start prepares the host and begins to fill the pool.
func (m *Manager) Start(ctx context.Context) error {
	run, ok, err := m.Begin(ctx)
	if err != nil || !ok {
		return err
	}
	if err := m.prepare(); err != nil {
		m.Base.Stop() // a second Start must not say that it runs
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if run.Err() != nil {
		m.host.close()
		return lifecycle.ErrStopped
	}
	m.serving = true
	m.Go(func() { m.keepPool(run) })
	return nil
}

func (m *Manager) prepare() (err error) {
	if m.host, err = openHost(names(m.opt.Installation), m.opt.HostNS); err != nil {
		return fault.Wrap(err, "start", "network")
	}
	m.upstream.ns = m.host.ns
	if err := m.settle(); err != nil {
		m.host.close()
		return err
	}
	return nil
}

// Stop removes the unused slots and lets go of the held ones, which go on without the agent.
func (m *Manager) Stop() {
	m.Base.Stop() // first: a Start that is under way sees it, and running calls end
	m.mu.Lock()
	was := m.serving
	m.serving = false
	m.mu.Unlock()
	if !was {
		return
	}
	for _, s := range m.takePool() {
		if err := s.remove(); err != nil {
			m.log.Error("remove unused slot", "slot", s.number, "error", err)
		}
	}
	for _, s := range m.heldSlots() {
		s.detach()
	}
	m.host.close()
}

// Subnet is the range of uplink addresses, once started.
func (m *Manager) Subnet() netip.Prefix { return m.subnet }

// enter begins a call that needs the host; Stop waits for leave.
func (m *Manager) enter() (leave func(), err error) {
	m.mu.Lock()
	serving := m.serving
	m.mu.Unlock()
	if serving {
		if _, leave, err = m.Call(context.Background()); err == nil {
			return leave, nil
		}
	}
	return nil, fault.New(fault.Unavailable, "use", "network", "it is not running")
}

func (m *Manager) takePool() []*Slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.pool
	m.pool = nil
	return all
}

func (m *Manager) heldSlots() []*Slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*Slot, 0, len(m.held))
	for _, s := range m.held {
		out = append(out, s)
	}
	return out
}
