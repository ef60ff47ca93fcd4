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
	// rt runs it; one that this host does not have is stood in for.
	rt runtime.Runtime
	// gate is held for the whole of a transition; it is a channel so that waiting for it ends
	// with the waiter's context.
	gate chan struct{}

	// mu guards what readers see while a transition is under way.
	mu    sync.RWMutex
	j     journal
	in    runtime.Instance
	slot  *network.Slot
	guest *guestclient.Client
	// abort cancels the transition under way, for Destroy; doomed counts the Destroys that wait
	// for the gate, so that whoever gets it before them gives up at once.
	abort  context.CancelCauseFunc
	doomed int
	// yield ends work in the background that holds the gate; waiting counts who wants it.
	yield   context.CancelFunc
	waiting int
	// shallow is the capture that needs no merging; the gate guards it.
	shallow int
	// inFlight are the requests that the guest is being asked.
	inFlight int

	// still: this agent has made the sandbox, which the journal says is held, stand still.
	still atomic.Bool

	// activeAt keeps the monotonic clock's reading: a step of the host's clock is not idleness.
	activeAt atomic.Pointer[time.Time]
}

func newSandbox(dir paths.Sandbox, j journal, rt runtime.Runtime) *Sandbox {
	s := &Sandbox{dir: dir, rt: rt, j: j, gate: make(chan struct{}, 1)}
	s.touch(j.ActiveAt)
	return s
}

// enter takes the gate and returns the context of the transition.
func (s *Sandbox) enter(ctx context.Context) (context.Context, func(), error) {
	defer s.want()()
	select {
	case s.gate <- struct{}{}:
		ctx, leave := s.begin(ctx)
		return ctx, leave, nil
	case <-ctx.Done():
		return nil, nil, explain(ctx, fault.Wrap(ctx.Err(), "wait for", "sandbox "+s.ID()))
	}
}

// want takes the gate from who only works in the background, until undo.
func (s *Sandbox) want() (undo func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting++
	if s.yield != nil {
		s.yield()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting--
	}
}

// beginYielding is begin for work in the background: its context ends when somebody wants the gate.
func (s *Sandbox) beginYielding(ctx context.Context) (context.Context, func()) {
	ctx, leave := s.begin(ctx)
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.yield = cancel
	if s.waiting > 0 {
		cancel()
	}
	return ctx, func() {
		cancel()
		s.mu.Lock()
		s.yield = nil
		s.mu.Unlock()
		leave()
	}
}

// begin is the start of a transition whose gate is held.
func (s *Sandbox) begin(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	s.abort = cancel
	if s.doomed > 0 {
		cancel(errDestroyed)
	}
	s.mu.Unlock()
	return ctx, func() {
		cancel(nil)
		s.mu.Lock()
		s.abort = nil
		s.mu.Unlock()
		<-s.gate
	}
}

// interrupt cancels the transition under way and those that are before a Destroy, until undo.
func (s *Sandbox) interrupt() (undo func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doomed++
	if s.abort != nil {
		s.abort(errDestroyed)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.doomed--
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
	next.settle()
	if next.State != s.j.State && !may(s.j.State, next.State) {
		return fault.New(fault.Internal, "change", "sandbox "+s.j.ID, string(s.j.State)+" cannot become "+string(next.State))
	}
	// With a capture there is something that a power cut must not lose sight of, unless nobody was
	// told of it yet.
	if err := next.save(s.dir, durable || next.Capture != 0 && next.State != Creating); err != nil {
		return err
	}
	s.j = next
	return nil
}

// remember changes what is known without writing it down: for a change that a full disk must
// not keep from being made, and whose loss in a crash recovery makes good.
func (s *Sandbox) remember(change func(*journal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.j)
	s.j.settle()
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
func (s *Sandbox) touch(at time.Time) { s.activeAt.Store(&at) }

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
	s.mu.RLock()
	j, in := s.j, s.in
	s.mu.RUnlock()
	v := View{
		ID: j.ID, State: j.State, Reason: j.Reason, Generation: j.Generation,
		Template: j.TemplateName, Resources: j.Resources, Envs: maps.Clone(j.Envs),
		IdleTimeout: j.IdleTimeout, Runtime: j.Runtime, Isolation: j.Isolation,
		CreatedAt: j.CreatedAt, ActiveAt: *s.activeAt.Load(),
		Phases: j.Phases, Usage: j.Usage,
	}
	if j.Held != nil {
		v.Reason = j.Held.Reason
	}
	if a, is := s.rt.(*absent); is && j.State != Failed {
		v.Reason = a.reason()
	}
	if in != nil && j.State == Running {
		if u, err := in.Usage(); err == nil {
			v.Usage = u
		}
	}
	return v
}

// fence refuses an operation that was decided on an older generation.
func fence(j journal, op Operation) error {
	if op.Generation != 0 && op.Generation < j.Generation {
		return fault.New(fault.FailedPrecondition, "change", "sandbox "+j.ID, "it has changed since this was decided").
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
