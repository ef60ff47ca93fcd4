package sandbox

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
)

// Sandbox is one sandbox of this host.
type Sandbox struct {
	dir paths.Sandbox
	// gate is held for the whole of a transition; it is a channel so that waiting for it ends
	// with the waiter's context.
	gate chan struct{}

	// mu guards what readers see while a transition is under way.
	mu    sync.RWMutex
	j     journal
	in    runtime.Instance
	slot  *network.Slot
	guest *guestclient.Client
	// abort cancels the transition under way, for Destroy.
	abort context.CancelFunc

	activeAt atomic.Int64
	inFlight atomic.Int64
}

func newSandbox(dir paths.Sandbox, j journal) *Sandbox {
	s := &Sandbox{dir: dir, j: j, gate: make(chan struct{}, 1)}
	s.activeAt.Store(j.ActiveAt.UnixNano())
	return s
}

// enter takes the gate and returns the context of the transition.
func (s *Sandbox) enter(ctx context.Context) (context.Context, func(), error) {
	select {
	case s.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fault.Wrap(ctx.Err(), "wait for", "sandbox "+s.ID())
	}
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.abort = cancel
	s.mu.Unlock()
	return ctx, func() {
		cancel()
		s.mu.Lock()
		s.abort = nil
		s.mu.Unlock()
		<-s.gate
	}, nil
}

// interrupt cancels the transition under way, if any.
func (s *Sandbox) interrupt() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.abort != nil {
		s.abort()
	}
}

// ID of the sandbox.
func (s *Sandbox) ID() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.j.ID
}

// update changes the journal and writes it; when it cannot be written, nothing has changed.
func (s *Sandbox) update(durable bool, change func(*journal)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.j
	next.Operations = slices.Clone(next.Operations)
	change(&next)
	if next.State != s.j.State && !may(s.j.State, next.State) {
		return fault.New(fault.Internal, "change", "sandbox "+s.j.ID, string(s.j.State)+" cannot become "+string(next.State))
	}
	if err := next.save(s.dir, durable); err != nil {
		return err
	}
	s.j = next
	return nil
}

// journal returns a copy of what is known.
func (s *Sandbox) journal() journal {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.j
}

func (s *Sandbox) attach(in runtime.Instance, slot *network.Slot, guest *guestclient.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in, s.slot, s.guest = in, slot, guest
}

func (s *Sandbox) parts() (runtime.Instance, *network.Slot, *guestclient.Client) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.in, s.slot, s.guest
}

// touch notes activity.
func (s *Sandbox) touch(at time.Time) { s.activeAt.Store(at.UnixNano()) }

// View is what others may know of a sandbox.
type View struct {
	ID          string
	State       State
	Reason      string
	Generation  uint64
	Template    string
	Resources   runtime.Resources
	Envs        map[string]string
	IdleTimeout time.Duration
	Runtime     string
	Isolation   runtime.Isolation
	CreatedAt   time.Time
	ActiveAt    time.Time
	Phases      []runtime.Phase
	Usage       runtime.Usage
}

// View of the sandbox now; usage is read from the host while it runs.
func (s *Sandbox) View() View {
	j := s.journal()
	v := View{
		ID: j.ID, State: j.State, Reason: j.Reason, Generation: j.Generation,
		Template: j.TemplateName, Resources: j.Resources, Envs: maps.Clone(j.Envs),
		IdleTimeout: j.IdleTimeout, Runtime: j.Runtime, Isolation: j.Isolation,
		CreatedAt: j.CreatedAt, ActiveAt: time.Unix(0, s.activeAt.Load()),
		Phases: j.Phases, Usage: j.Usage,
	}
	if in, _, _ := s.parts(); in != nil && j.State == Running {
		if u, err := in.Usage(); err == nil {
			v.Usage = u
		}
	}
	return v
}

// fence refuses an operation that was decided on an older generation.
func fence(j journal, op Operation) error {
	if op.Generation != 0 && op.Generation < j.Generation {
		return fault.New(fault.Aborted, "change", "sandbox "+j.ID, "it has changed since this was decided").
			WithHint("read its state and try again")
	}
	return nil
}

// Operation identifies one change that somebody asked for. A zero Generation means "whatever
// it is"; an empty ID is never remembered.
type Operation struct {
	ID         string
	Generation uint64
}
