package sandbox

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	runtimes "github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// MaxForks of one request.
const MaxForks = 64

// Fork is one sandbox to make of another.
type Fork struct {
	Operation string
	ID        string
}

// ForkRequest says what to make of a sandbox.
type ForkRequest struct {
	Forks []Fork
	// Idle is the source's when nil; Envs are added to the source's.
	Idle *time.Duration
	Envs map[string]string
}

// ForkResult is what became of it.
type ForkResult struct {
	Sandboxes []View
	Source    View
	Frozen    time.Duration
	Phases    []runtimes.Phase
}

func (r ForkRequest) check() error {
	bad := func(why string) error { return fault.New(fault.Invalid, "fork", "sandbox", why) }
	if n := len(r.Forks); n < 1 || n > MaxForks {
		return bad("count must be 1 to 64")
	}
	seen := map[string]bool{}
	for _, f := range r.Forks {
		if err := checkID(f.ID); err != nil {
			return err
		}
		if seen[f.ID] {
			return bad("sandbox id " + f.ID + " is there twice")
		}
		seen[f.ID] = true
	}
	if r.Idle != nil {
		return checkIdle("fork", *r.Idle)
	}
	return nil
}

// Fork makes sandboxes with the memory of one that runs or is paused: all or none. The source
// stands still once, for all of them.
func (m *Manager) Fork(ctx context.Context, op Operation, id string, req ForkRequest) (ForkResult, error) {
	if err := req.check(); err != nil {
		return ForkResult{}, err
	}
	s, ctx, leave, err := m.enter(ctx, id)
	if err != nil {
		return ForkResult{}, err
	}
	defer leave()
	if j := s.journal(); j.did(op.ID) {
		return m.forkedBefore(s, req)
	}
	out, err := m.fork(ctx, s, op, req)
	if err != nil {
		return ForkResult{}, fault.Wrap(explain(ctx, err), "fork", "sandbox "+id)
	}
	out.Source = s.View()
	return out, nil
}

// forkedBefore answers a repeated fork as the first time.
func (m *Manager) forkedBefore(s *Sandbox, req ForkRequest) (ForkResult, error) {
	out := ForkResult{Source: s.View()}
	for _, f := range req.Forks {
		v, err := m.Get(f.ID)
		if err != nil {
			return ForkResult{}, err
		}
		out.Sandboxes = append(out.Sandboxes, v)
	}
	return out, nil
}

func (m *Manager) fork(ctx context.Context, s *Sandbox, op Operation, req ForkRequest) (ForkResult, error) {
	m.making.RLock()
	defer m.making.RUnlock()
	clock := newStopwatch()
	// No snapshot has the id of a sandbox: the stage's name is nobody else's.
	o, release, err := m.takeOrigin(ctx, s, op, req.Forks[0].ID, runtimes.CaptureOptions{}, clock)
	if err != nil {
		return ForkResult{}, err
	}
	defer release()
	out := ForkResult{Frozen: o.man.Frozen}
	if err = failpoint.Hit("sandbox.fork.captured"); err == nil {
		out.Sandboxes, err = m.makeForks(ctx, s, o, req)
		clock.mark("start")
	}
	if err == nil {
		err = failpoint.Hit("sandbox.fork.made")
	}
	if err != nil {
		err = classify(err, meanwhile(s.journal().State))
		return ForkResult{}, errors.Join(err, m.destroyForks(ctx, out.Sandboxes))
	}
	m.noteOperation(s, op)
	out.Phases = clock.phases
	return out, nil
}

// makeForks starts them all, some at once. With an error the views are of those that it made.
func (m *Manager) makeForks(ctx context.Context, s *Sandbox, o origin, req ForkRequest) ([]View, error) {
	idle := s.journal().IdleTimeout
	if req.Idle != nil {
		idle = *req.Idle
	}
	views := make([]View, len(req.Forks))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.NumCPU())
	for i, f := range req.Forks {
		group.Go(func() error {
			p, err := m.planOrigin(CreateRequest{ID: f.ID, IdleTimeout: idle, Envs: req.Envs}, o)
			if err == nil {
				views[i], err = m.carryOut(ctx, Operation{ID: f.Operation}, p, func(string, string) {})
			}
			return err
		})
	}
	return views, group.Wait()
}

// destroyForks takes back those that were made when not all could be.
func (m *Manager) destroyForks(ctx context.Context, made []View) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
	)
	for _, v := range made {
		if v.ID == "" {
			continue // a create that failed has left nothing, and a taken id is somebody else's
		}
		wg.Go(func() {
			if err := m.Destroy(ctx, Operation{}, v.ID); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
