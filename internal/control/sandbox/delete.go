package sandbox

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// Delete removes a sandbox from any state. Deleting a deleted one is a success.
func (s *Service) Delete(ctx context.Context, id string) error {
	if err := s.begin(); err != nil {
		return err
	}
	defer s.running.Done()
	before, mine, err := s.acquire(ctx, verbDelete, id)
	if err != nil || mine == nil {
		return err
	}
	calling, cancel := s.detach(ctx, verbDelete)
	defer cancel()
	next := mine.Copy()
	next.ClaimID, next.ClaimDeadline = "", 0
	if err := s.destroy(calling, mine, mine.ClaimID); err != nil {
		next.Reason = failure(verbDelete, err)
		return errors.Join(err, s.finish(ctx, verbDelete, mine, next))
	}
	next.Reason = epitaph(before)
	bury(next, s.now())
	return s.finish(ctx, verbDelete, mine, next)
}

// epitaph is the reason that a deleted row keeps.
func epitaph(before *store.Sandbox) string {
	switch {
	case before.State == store.Failed:
		return "deleted on request after it had failed" + because(before)
	case before.State == store.Lost:
		return "deleted on request after it was lost" + because(before)
	case before.State == store.Deleting && before.Reason != "":
		return before.Reason + "; then deleted"
	default:
		return "deleted on request"
	}
}

func bury(row *store.Sandbox, now time.Time) {
	row.State, row.DeletedAt = store.Deleted, store.At(now)
	row.MemoryUsedBytes, row.DiskUsedBytes = 0, 0
}

// destroy calls the host until it is certain that it has nothing of the sandbox left.
func (s *Service) destroy(ctx context.Context, row *store.Sandbox, operation string) error {
	op := &hostv1.Operation{OperationId: operation, Generation: uint64(row.Generation)}
	err := s.callDestroy(ctx, row.ID, op)
	if fault.Is(err, fault.FailedPrecondition) {
		// The host changed the sandbox by itself; its generation decides.
		report, rerr := s.report(ctx, row.ID)
		if rerr == nil && report.GetGeneration() > op.Generation {
			op = &hostv1.Operation{OperationId: store.NewID(), Generation: report.GetGeneration()}
			err = s.callDestroy(ctx, row.ID, op)
		}
	}
	if err == nil || fault.Is(err, fault.NotFound) {
		return nil
	}
	f := &fault.Error{Kind: fault.KindOf(err), Op: "delete", Object: "sandbox " + row.ID, Err: fault.FromConnect(err)}
	return f.WithHint("Roost keeps trying; delete it again to try at once")
}

func (s *Service) callDestroy(ctx context.Context, id string, op *hostv1.Operation) error {
	_, err := host.Repeat(ctx, func() (struct{}, error) {
		_, err := s.client.DestroySandbox(ctx, connect.NewRequest(
			&hostv1.DestroySandboxRequest{Operation: op, SandboxId: id}))
		return struct{}{}, err
	})
	return err
}

// DestroyLeftover removes from the host a sandbox whose row says that it was deleted: its
// create had reached the host after its delete.
func (s *Service) DestroyLeftover(ctx context.Context, row *store.Sandbox) error {
	if row.State != store.Deleted {
		return fault.New(fault.Internal, "destroy leftover of", "sandbox "+row.ID, "its row is "+string(row.State))
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return host.CallError(s.destroy(ctx, row, store.NewID()), "destroy leftover of", "sandbox "+row.ID)
}
