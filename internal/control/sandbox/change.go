package sandbox

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

const (
	// attempts at a change of a row that was behind its host.
	attempts = 3
	// truthEvery is how often a host in the middle of something is asked again.
	truthEvery = 100 * time.Millisecond
)

// errStale says that the host had a newer generation, which the row now has.
var errStale = errors.New("the host had a newer generation")

// hostCall is one mutating RPC under the claim of a row.
type hostCall func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error)

// Pause saves a running sandbox to disk; diskOnly leaves out memory and processes, and a
// resume boots. Pausing a paused one is a success.
func (s *Service) Pause(ctx context.Context, id string, diskOnly bool) (*store.Sandbox, error) {
	return s.change(ctx, verbPause, id, nil, func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
		resp, err := s.client.PauseSandbox(ctx, connect.NewRequest(
			&hostv1.PauseSandboxRequest{Operation: op, SandboxId: id, DiskOnly: diskOnly}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetSandbox(), nil
	})
}

// Resume wakes a paused sandbox. cold boots it from its disk instead, and starts a failed or
// lost one again. Resuming a running one is a success.
func (s *Service) Resume(ctx context.Context, id string, cold bool) (*store.Sandbox, error) {
	v := verbResume
	if cold {
		v = verbCold
	}
	return s.change(ctx, v, id, nil, func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
		resp, err := s.client.ResumeSandbox(ctx, connect.NewRequest(
			&hostv1.ResumeSandboxRequest{Operation: op, SandboxId: id, Cold: cold}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetSandbox(), nil
	})
}

// SetTimeout sets after how many idle seconds a sandbox pauses; 0 = never.
func (s *Service) SetTimeout(ctx context.Context, id string, seconds int) (*store.Sandbox, error) {
	if err := within("idle_timeout_s", seconds, 0, maxIdleTimeout); err != nil {
		return nil, err
	}
	idle := time.Duration(seconds) * time.Second
	return s.change(ctx, verbTimeout, id, nil, func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
		resp, err := s.client.SetTimeout(ctx, connect.NewRequest(&hostv1.SetTimeoutRequest{
			Operation: op, SandboxId: id, IdleTimeout: durationpb.New(idle)}))
		if err != nil {
			return nil, err
		}
		report := resp.Msg.GetSandbox()
		if report != nil && report.GetIdleTimeout() == nil {
			report.IdleTimeout = durationpb.New(idle)
		}
		return report, nil
	})
}

// preparation runs between the claim and the host call, with the claimed row; it may run
// again when the row was behind its host. Its error ends the change before the host is called.
type preparation func(ctx context.Context, mine *store.Sandbox) error

// change claims, calls and settles; a row that was behind its host is decided anew.
func (s *Service) change(ctx context.Context, v verb, id string, prepare preparation, call hostCall) (*store.Sandbox, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.running.Done()
	for try := 1; ; try++ {
		before, mine, err := s.acquire(ctx, v, id)
		if err != nil || mine == nil {
			return before, err
		}
		if prepare != nil {
			if err := prepare(ctx, mine); err != nil {
				return nil, errors.Join(err, s.release(ctx, v, before, mine))
			}
		}
		row, err := s.perform(ctx, v, before, mine, call)
		if !errors.Is(err, errStale) || try == attempts {
			return row, err
		}
	}
}

func (s *Service) perform(ctx context.Context, v verb, before, mine *store.Sandbox, call hostCall) (*store.Sandbox, error) {
	report, err := s.ask(ctx, v, mine, call)
	if err != nil {
		return s.revert(ctx, v, before, mine, s.hostError(err, v, mine.ID))
	}
	next := mine.Copy()
	next.State = arrival(v, before)
	takeReport(next, report)
	return next, s.finish(ctx, v, mine, next)
}

// release ends a claim under which nothing was done.
func (s *Service) release(ctx context.Context, v verb, before, mine *store.Sandbox) error {
	next := mine.Copy()
	next.State, next.ClaimID, next.ClaimDeadline = before.State, "", 0
	return s.finish(ctx, v, mine, next)
}

// arrival is where a verb leads when the host's answer does not say.
func arrival(v verb, before *store.Sandbox) store.State {
	if to := transitions[v].to; to != "" {
		return to
	}
	return before.State
}

// ask calls the host under the claim, whatever the client does meanwhile. A call that
// nobody answered is repeated with the same operation id.
func (s *Service) ask(ctx context.Context, v verb, mine *store.Sandbox, call hostCall) (*hostv1.Sandbox, error) {
	ctx, cancel := s.detach(ctx, v)
	defer cancel()
	op := &hostv1.Operation{OperationId: mine.ClaimID, Generation: uint64(mine.Generation)}
	return host.Repeat(ctx, func() (*hostv1.Sandbox, error) { return call(ctx, op) })
}

// detach bounds a host call by its claim and by Close alone.
func (s *Service) detach(ctx context.Context, v verb) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.limit(v))
	stop := context.AfterFunc(s.ending, cancel)
	return ctx, func() { stop(); cancel() }
}

// hostError is the error of a host call; one that Close cut off says so.
func (s *Service) hostError(err error, v verb, id string) error {
	if s.ending.Err() != nil && fault.Is(err, fault.Canceled) {
		return fault.New(fault.Unavailable, string(v), "sandbox "+id, "the control plane is stopping").
			WithHint("try again in a moment")
	}
	return host.CallError(err, string(v), "sandbox "+id)
}

// revert ends the claim of a call that failed: the row follows the host where it can tell,
// and else returns to where it was.
func (s *Service) revert(ctx context.Context, v verb, before, mine *store.Sandbox, cause error) (*store.Sandbox, error) {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	report, err := s.truth(ctx, mine.ID)
	if report != nil && hostStates[report.GetState()] == "" {
		return nil, errors.Join(cause, s.leave(ctx, v, mine))
	}
	next := mine.Copy()
	next.State, next.ClaimID, next.ClaimDeadline = before.State, "", 0
	switch {
	case fault.Is(err, fault.NotFound):
		if gone, changed := vanished(next, s.now()); changed {
			next = gone
		}
	case report != nil:
		takeReport(next, report)
		if next.State == transitions[v].to {
			return next, s.finish(ctx, v, mine, next) // only the reply was lost
		}
	}
	stale := next.Generation > before.Generation && fault.Is(cause, fault.FailedPrecondition)
	// A verb that leaves the state leaves no reason for it either.
	if next.Reason == "" && !stale && transitions[v].via != "" {
		next.Reason = failure(v, cause)
	}
	if err := s.finish(ctx, v, mine, next); err != nil {
		return nil, errors.Join(cause, err)
	}
	if stale {
		return nil, errStale
	}
	return nil, cause
}

// leave ends the waiting for a host that is still at it, past a failure: the mark stays, and its
// deadline is now, so that the row follows as soon as the host has finished or undone the change.
func (s *Service) leave(ctx context.Context, v verb, mine *store.Sandbox) error {
	next := mine.Copy()
	next.ClaimDeadline = store.At(s.now())
	return s.finish(ctx, v, mine, next)
}

// truth asks the host for a sandbox until it is in a state to rest in, or ctx ends.
func (s *Service) truth(ctx context.Context, id string) (*hostv1.Sandbox, error) {
	for {
		report, err := s.report(ctx, id)
		if err != nil || hostStates[report.GetState()] != "" {
			return report, err
		}
		select {
		case <-ctx.Done():
			return report, nil
		case <-s.ending.Done():
			return report, nil
		case <-time.After(truthEvery):
		}
	}
}
