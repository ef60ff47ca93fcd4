package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

const (
	defaultWaitLimit = 30 * time.Second
	// freshLimit bounds the question to the host behind a Get.
	freshLimit = 2 * time.Second
	// KeepDeleted is how long an ended sandbox keeps its row, and an idempotency key its
	// sandbox.
	KeepDeleted = 24 * time.Hour
)

// Sandbox is a row, as the service gives it to handlers.
type Sandbox = store.Sandbox

// Phase is one timed step.
type Phase = store.Phase

// State of a sandbox; doc.go has the diagram.
type State = store.State

// Config is what a Service works with.
type Config struct {
	Store     *store.Store
	Client    hostv1connect.HostServiceClient
	Templates *template.Service
	Hosts     *host.Service
	Logger    *slog.Logger
	Now       func() time.Time
	// WaitLimit bounds the wait for another request's change. Default 30 s.
	WaitLimit time.Duration
	// ClaimLimit, when set, replaces each transition's own limit: for tests.
	ClaimLimit time.Duration
}

// Service changes and reads sandboxes. It is safe for concurrent use.
type Service struct {
	store      *store.Store
	client     hostv1connect.HostServiceClient
	templates  *template.Service
	hosts      *host.Service
	log        *slog.Logger
	now        func() time.Time
	waitLimit  time.Duration
	claimLimit time.Duration
	settled    *signal

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
	ending  context.Context
	end     context.CancelFunc
}

// New makes a Service.
func New(c Config) *Service {
	ending, end := context.WithCancel(context.Background())
	if c.WaitLimit == 0 {
		c.WaitLimit = defaultWaitLimit
	}
	return &Service{
		store: c.Store, client: c.Client, templates: c.Templates, hosts: c.Hosts,
		log: c.Logger, now: c.Now, waitLimit: c.WaitLimit, claimLimit: c.ClaimLimit,
		settled: newSignal(), ending: ending, end: end,
	}
}

// Close cancels host calls that run, waits until their rows are settled or reverted, and
// refuses new changes. Sandboxes themselves are left alone.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	s.running.Wait()
}

// begin registers a change that Close waits for.
func (s *Service) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fault.New(fault.Unavailable, "", "", "the control plane is stopping").WithHint("try again in a moment")
	}
	s.running.Add(1)
	return nil
}

// Get reads a sandbox, as fresh as the host can tell it.
func (s *Service) Get(ctx context.Context, id string) (*store.Sandbox, error) {
	row, err := s.find(ctx, id)
	if err != nil || row.State == store.Deleted || row.Claimed(s.now()) {
		return row, err
	}
	asking, cancel := context.WithTimeout(ctx, freshLimit)
	defer cancel()
	fresh, err := s.Refresh(asking, row)
	if err != nil {
		// A host that is away must not hide what is known.
		return row, ctx.Err()
	}
	return fresh, nil
}

func (s *Service) find(ctx context.Context, id string) (*store.Sandbox, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	row, err := s.store.Sandbox(ctx, id)
	var f *fault.Error
	if fault.Is(err, fault.NotFound) && errors.As(err, &f) {
		return nil, f.WithHint("list them: roost ls")
	}
	return row, err
}

// List reads a page of sandboxes, newest first, and the cursor of the next page ("" at the
// end).
func (s *Service) List(ctx context.Context, state store.State, limit int, cursor string) ([]*store.Sandbox, string, error) {
	if err := within("limit", limit, 1, 1000); err != nil {
		return nil, "", err
	}
	after, err := parseCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	rows, err := s.store.Sandboxes(ctx, store.Filter{State: state, After: after, Limit: limit + 1})
	if err != nil || len(rows) <= limit {
		return rows, "", err
	}
	return rows[:limit], formatCursor(rows[limit-1]), nil
}

// Refresh asks the host about an unclaimed row and lets the row follow (see Heal). The
// returned row has the host's present figures, which alone are not worth a write.
func (s *Service) Refresh(ctx context.Context, row *store.Sandbox) (*store.Sandbox, error) {
	report, err := s.report(ctx, row.ID)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	next, changed := Heal(row, report, s.now())
	if !changed {
		if report != nil && report.GetGeneration() == uint64(row.Generation) {
			next = row.Copy()
			takeFigures(next, report)
			return next, nil
		}
		return row, nil
	}
	ok, err := s.store.Swap(ctx, row, next)
	if err != nil {
		return nil, err
	}
	if !ok {
		return s.store.Sandbox(ctx, row.ID)
	}
	s.settled.notify(row.ID)
	return next, nil
}

// report asks the host for a sandbox: not_found when it knows none.
func (s *Service) report(ctx context.Context, id string) (*hostv1.Sandbox, error) {
	resp, err := s.client.GetSandbox(ctx, connect.NewRequest(&hostv1.GetSandboxRequest{SandboxId: id}))
	if err != nil {
		return nil, host.CallError(err, "ask host about", "sandbox "+id)
	}
	return resp.Msg.GetSandbox(), nil
}

// Ready returns the sandbox when commands may be sent to it: it runs. One that is being
// created or resumed is waited for. for what names the caller's wish in the error.
func (s *Service) Ready(ctx context.Context, id, what string) (*store.Sandbox, error) {
	row, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if row.Claimed(s.now()) && (row.State == store.Creating || row.State == store.Resuming) {
		if row, err = s.await(ctx, verb(what), row); err != nil {
			return nil, err
		}
	}
	return row, usable(row, what)
}

func usable(row *store.Sandbox, what string) error {
	switch row.State {
	case store.Running:
		return nil
	case store.Deleted:
		return deletedError(verb(what), row)
	default:
		return stateError(row)
	}
}

// Explain turns a guest's failure into the sandbox's state when that is the cause: the host
// may have paused or lost a sandbox whose row said that it runs.
func (s *Service) Explain(ctx context.Context, id, what string, cause error) error {
	switch fault.KindOf(cause) {
	case fault.Unavailable, fault.FailedPrecondition, fault.NotFound, fault.Unauthenticated:
	default:
		return cause
	}
	row, err := s.Get(ctx, id)
	if err != nil {
		return cause
	}
	if err := usable(row, what); err != nil {
		return err
	}
	return cause
}

// Console returns the end of the guest's console, also after its death.
func (s *Service) Console(ctx context.Context, id string, tail int) ([]byte, error) {
	if tail < 0 || tail > mib {
		return nil, invalid("tail_bytes", tail, "must be 1 to 1048576")
	}
	row, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if row.State == store.Deleted {
		return nil, deletedError("read console of", row)
	}
	resp, err := s.client.GetConsole(ctx, connect.NewRequest(
		&hostv1.GetConsoleRequest{SandboxId: id, TailBytes: uint32(tail)}))
	if err != nil {
		return nil, host.CallError(err, "read console of", "sandbox "+id)
	}
	return resp.Msg.GetData(), nil
}
