package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// pollEvery finds settlements by other control planes.
const pollEvery = 250 * time.Millisecond

// acquire takes the claim of a verb: before is the row as it was, mine as it is claimed. A
// nil mine says that nothing is left to do.
func (s *Service) acquire(ctx context.Context, v verb, id string) (before, mine *store.Sandbox, err error) {
	row, err := s.find(ctx, id)
	fresh := false
	for err == nil {
		var d decision
		if d, err = judge(v, row, s.now()); err != nil {
			break
		}
		switch d {
		case done:
			// The host may have moved by itself (an idle pause) since the row was written.
			if fresh || row.State == store.Deleted {
				return row, nil, nil
			}
			fresh = true
			row, err = s.Refresh(ctx, row)
		case wait:
			row, err = s.share(ctx, v, row)
		case consult:
			row, err = s.consult(ctx, v, row)
		default:
			if mine, err = s.take(ctx, v, row); mine != nil || err != nil {
				return row, mine, err
			}
			row, err = s.store.Sandbox(ctx, id)
		}
	}
	return nil, nil, err
}

// take claims a row as it was seen; nil when another was faster.
func (s *Service) take(ctx context.Context, v verb, seen *store.Sandbox) (*store.Sandbox, error) {
	// A commit whose answer the client's disconnect cut off would claim the row for nobody.
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	next := seen.Copy()
	s.stamp(v, next)
	ok, err := s.store.Swap(ctx, seen, next)
	if err != nil || !ok {
		return nil, err
	}
	return next, nil
}

// stamp puts a verb's claim on a row.
func (s *Service) stamp(v verb, row *store.Sandbox) {
	if via := transitions[v].via; via != "" {
		row.State = via
	}
	row.ClaimID = store.NewID()
	row.ClaimDeadline = store.At(s.now().Add(s.limit(v)))
}

func (s *Service) limit(v verb) time.Duration {
	if s.claimLimit > 0 {
		return s.claimLimit
	}
	return transitions[v].limit
}

// share waits for another operation. When that was the same change and it failed, so does
// this one: fifty callers must not try a broken host one after the other.
func (s *Service) share(ctx context.Context, v verb, row *store.Sandbox) (*store.Sandbox, error) {
	t := transitions[v]
	same := row.State == t.via
	row, err := s.await(ctx, v, row)
	if err != nil {
		return nil, err
	}
	if same && row.State != t.to && row.State != store.Deleted {
		return nil, fault.New(fault.Aborted, string(v), "sandbox "+row.ID,
			"another request's "+string(v)+" failed"+because(row)).WithHint("try again")
	}
	return row, nil
}

// await returns the row when no operation owns it any more.
func (s *Service) await(ctx context.Context, v verb, row *store.Sandbox) (*store.Sandbox, error) {
	limit := time.NewTimer(s.waitLimit)
	defer limit.Stop()
	for {
		settled, leave := s.settled.subscribe(row.ID)
		// Read after subscribing: a settlement in between closes the channel.
		now, err := s.store.Sandbox(ctx, row.ID)
		if err != nil || !now.Claimed(s.now()) {
			leave()
			return now, err
		}
		select {
		case <-settled:
		case <-time.After(pollEvery):
		case <-ctx.Done():
			err = fault.Wrap(ctx.Err(), string(v), "sandbox "+row.ID)
		case <-limit.C:
			err = busyError(v, now)
		case <-s.ending.Done():
			err = fault.New(fault.Unavailable, string(v), "sandbox "+row.ID, "the control plane is stopping")
		}
		leave()
		if err != nil {
			return nil, err
		}
	}
}

// consult lets a row whose operation died follow the host.
func (s *Service) consult(ctx context.Context, v verb, row *store.Sandbox) (*store.Sandbox, error) {
	fresh, err := s.Refresh(ctx, row)
	if err != nil {
		return nil, err
	}
	if transitional(fresh.State) && !fresh.Claimed(s.now()) {
		return nil, busyError(v, fresh)
	}
	return fresh, nil
}

// finish swaps a claimed row for what became of it. It fails when a delete took the row.
func (s *Service) finish(ctx context.Context, v verb, mine, next *store.Sandbox) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	ok, err := s.store.Swap(ctx, mine, next)
	s.settled.notify(mine.ID)
	if err != nil {
		return err
	}
	if !ok {
		return fault.New(fault.Aborted, string(v), "sandbox "+mine.ID, "it was deleted meanwhile")
	}
	return nil
}

// failure is the reason that a row keeps after a change that failed.
func failure(v verb, err error) string { return fmt.Sprintf("%s failed: %s", v, fault.Message(err)) }
