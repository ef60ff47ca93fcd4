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

func (r ForkRequest) check(source string) error {
	bad := func(why string) error { return fault.New(fault.Invalid, "fork", "sandbox", why) }
	if n := len(r.Forks); n < 1 || n > MaxForks {
		return bad("count must be 1 to 64")
	}
	seen := map[string]bool{}
	for _, f := range r.Forks {
		if err := checkID(f.ID); err != nil {
			return err
		}
		switch {
		case f.ID == source: // whose gate would be waited for while it is held
			return bad("sandbox id " + f.ID + " is the source's own")
		case seen[f.ID]:
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
	if err := req.check(id); err != nil {
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

// forkedBefore answers a repeated fork as the first time. What is being destroyed since is as
// good as gone.
func (m *Manager) forkedBefore(s *Sandbox, req ForkRequest) (ForkResult, error) {
	out := ForkResult{Source: s.View()}
	for _, f := range req.Forks {
		v, err := m.Get(f.ID)
		if err == nil && v.State == Destroying {
			err = fault.New(fault.NotFound, "find", "sandbox "+f.ID, "it is being destroyed")
		}
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
	if op.ID == "" {
		op.ID = "fork-" + randomHex(8) // the commit needs a name
	}
	note := &forkNote{Source: s.ID(), Operation: op.ID}
	if err = failpoint.Hit("sandbox.fork.captured"); err == nil {
		out.Sandboxes, err = m.makeForks(ctx, s, o, req, note)
		clock.mark("start")
	}
	if err == nil {
		err = failpoint.Hit("sandbox.fork.made")
	}
	if err == nil {
		// The commit: until the source says so, a crash takes them all.
		err = s.update(true, func(j *journal) { j.note(op.ID) })
	}
	if err != nil {
		err = classify(err, meanwhile(s.journal().State))
		return ForkResult{}, errors.Join(err, m.destroyForks(ctx, out.Sandboxes))
	}
	m.settleForks(note)
	out.Phases = clock.phases
	return out, nil
}

// forkNote names a fork whose sandboxes may not all be there.
type forkNote struct {
	Source    string `json:"source"`
	Operation string `json:"operation"`
}

// settleForks lets the sandboxes of a fork that is committed stand for themselves. What cannot be
// written down is done by the next start.
func (m *Manager) settleForks(note *forkNote) {
	for _, s := range m.list() {
		if j := s.journal(); j.Fork == nil || *j.Fork != *note {
			continue
		}
		if err := s.update(false, func(j *journal) { j.Fork = nil }); err != nil {
			m.log.Warn("the end of a fork is not written down", "sandbox", s.ID(), "error", err)
		}
	}
}

// finishForks ends what a dead agent left of forks: committed ones stand, the others are taken
// back, all of them. A source that is gone was free to go, so its forks were committed.
func (m *Manager) finishForks(ctx context.Context) error {
	var unfinished []View
	for _, s := range m.list() {
		j := s.journal()
		if j.Fork == nil {
			continue
		}
		source, err := m.lookup(j.Fork.Source)
		if err == nil {
			if src := source.journal(); !src.did(j.Fork.Operation) {
				unfinished = append(unfinished, s.View())
				continue
			}
		}
		m.settleForks(j.Fork)
	}
	return m.destroyForks(ctx, unfinished)
}

// makeForks starts them all, some at once. With an error the views are of those that it made.
func (m *Manager) makeForks(ctx context.Context, s *Sandbox, o origin, req ForkRequest, note *forkNote) ([]View, error) {
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
				p.fork = note
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
