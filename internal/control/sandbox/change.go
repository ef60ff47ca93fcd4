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
	attempts  = 3
	firstWait = 100 * time.Millisecond
	// truthEvery is how often a host in the middle of something is asked again.
	truthEvery = 100 * time.Millisecond
)

// errStale says that the host had a newer generation, which the row now has.
var errStale = errors.New("the host had a newer generation")

// hostCall is one mutating RPC.
type hostCall func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error)

// Pause saves a running sandbox to disk. Pausing a paused one is a success.
func (s *Service) Pause(ctx context.Context, id string) (*store.Sandbox, error) {
	return s.change(ctx, verbPause, id, func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
		resp, err := s.client.PauseSandbox(ctx, connect.NewRequest(
			&hostv1.PauseSandboxRequest{Operation: op, SandboxId: id}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetSandbox(), nil
	})
}

// Resume wakes a paused sandbox. Resuming a running one is a success.
func (s *Service) Resume(ctx context.Context, id string) (*store.Sandbox, error) {
	return s.change(ctx, verbResume, id, func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
		resp, err := s.client.ResumeSandbox(ctx, connect.NewRequest(
			&hostv1.ResumeSandboxRequest{Operation: op, SandboxId: id}))
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
	return s.change(ctx, verbTimeout, id, func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
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

// change claims, calls and settles; a row that was behind its host is decided anew.
func (s *Service) change(ctx context.Context, v verb, id string, call hostCall) (*store.Sandbox, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.running.Done()
	for try := 1; ; try++ {
		before, mine, err := s.acquire(ctx, v, id)
		if err != nil || mine == nil {
			return before, err
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
	return repeat(ctx, func() (*hostv1.Sandbox, error) { return call(ctx, op) })
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

// repeat tries a call again while nobody answers.
func repeat[T any](ctx context.Context, call func() (T, error)) (T, error) {
	wait := firstWait
	for try := 1; ; try++ {
		out, err := call()
		if !fault.Is(err, fault.Unavailable) || try == attempts {
			return out, err
		}
		select {
		case <-ctx.Done():
			return out, err
		case <-time.After(wait):
			wait *= 3
		}
	}
}

// revert ends the claim of a call that failed: the row follows the host where it can tell,
// and else returns to where it was.
func (s *Service) revert(ctx context.Context, v verb, before, mine *store.Sandbox, cause error) (*store.Sandbox, error) {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	report, err := s.truth(ctx, mine.ID)
	if report != nil && hostStates[report.GetState()] == "" {
		// The host is still at it; the claim stands until its deadline, then the reconciler looks.
		return nil, cause
	}
	next := mine.Copy()
	next.State, next.ClaimID, next.ClaimDeadline = before.State, "", 0
	switch {
	case fault.Is(err, fault.NotFound):
		next, _ = lost(next, s.now())
	case report != nil:
		takeReport(next, report)
		if next.State == transitions[v].to {
			return next, s.finish(ctx, v, mine, next) // only the reply was lost
		}
	}
	stale := next.Generation > before.Generation && fault.Is(cause, fault.FailedPrecondition)
	if next.Reason == "" && !stale && v != verbTimeout {
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
