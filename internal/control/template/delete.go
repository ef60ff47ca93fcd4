package template

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/lifecycle"
)

// Delete removes a template by name or id; one that is not there is removed already. only,
// when set, is the one type that the caller means. A template that is being made is waited
// for.
func (s *Service) Delete(ctx context.Context, name string, only Type) error {
	row, err := s.find(ctx, name)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case only != "" && row.Type != only:
		return fault.New(fault.FailedPrecondition, "delete", string(only)+" "+name, "it is a "+kind(row)).
			WithHint("delete it as one: " + removal(row))
	case row.BuiltByHost:
		return fault.New(fault.FailedPrecondition, "delete", "template "+row.Name,
			"the host builds it from a recipe and would build it again").
			WithHint("templates that you made can be deleted: roost template ls")
	}
	mine, err := s.acquire(ctx, row)
	if err != nil || mine == nil {
		return err
	}
	return s.Erase(ctx, mine)
}

// acquire claims a row for its delete, when nobody works on it any more; nil when it is gone.
func (s *Service) acquire(ctx context.Context, row *Template) (*Template, error) {
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for {
		if !row.Claimed(s.now()) {
			if mine, err := s.claimErase(ctx, row); mine != nil || err != nil {
				return mine, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(ctx.Err(), "delete", kind(row)+" "+row.Name)
		case <-s.Done():
			return nil, stopping()
		case <-limit.C:
			return nil, fault.New(fault.Aborted, "delete", kind(row)+" "+row.Name, "it is "+string(row.State)).
				WithHint("try again when that has ended")
		case <-time.After(pollEvery):
		}
		fresh, err := s.store.Template(ctx, row.ID)
		if fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		row = fresh
	}
}

// claimErase marks a row as deleting; nil when another was faster.
func (s *Service) claimErase(ctx context.Context, seen *Template) (*Template, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitLimit)
	defer cancel()
	next := seen.Copy()
	next.State, next.ClaimID = store.TemplateDeleting, store.NewID()
	next.ClaimDeadline = store.At(s.now().Add(eraseLimit))
	ok, err := s.store.SwapTemplate(ctx, seen, next)
	if err != nil || !ok {
		return nil, err
	}
	return next, nil
}

// Finish repeats a delete that nobody works on.
func (s *Service) Finish(ctx context.Context, row *Template) error {
	mine, err := s.claimErase(ctx, row)
	if err != nil || mine == nil {
		return err
	}
	return s.Erase(ctx, mine)
}

// Erase removes a row that is claimed for its delete, and all that the host has of it,
// whatever the client does meanwhile. What fails is repeated by the reconciler.
func (s *Service) Erase(ctx context.Context, mine *Template) error {
	ctx, done, err := s.Call(context.WithoutCancel(ctx))
	if errors.Is(err, lifecycle.ErrStopped) {
		return stopping()
	}
	if err != nil {
		return err
	}
	defer done()
	return s.erase(ctx, mine)
}

func (s *Service) erase(ctx context.Context, mine *Template) error {
	calling, cancel := context.WithTimeout(ctx, eraseLimit)
	err := s.destroy(calling, mine)
	cancel()
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), waitLimit)
	defer cancel()
	if err == nil {
		s.erased.note(s.now(), "snapshot "+mine.SnapshotID, "template "+mine.Name)
		_, err = s.store.RemoveTemplate(ctx, mine)
		return err
	}
	next := mine.Copy()
	next.ClaimID, next.ClaimDeadline, next.Reason = "", 0, "delete failed: "+fault.Message(err)
	if _, serr := s.store.SwapTemplate(ctx, mine, next); serr != nil {
		err = errors.Join(err, serr)
	}
	f := &fault.Error{Kind: fault.KindOf(err), Op: "delete", Object: kind(mine) + " " + mine.Name, Err: fault.FromConnect(err)}
	return f.WithHint("Roost keeps trying; delete it again to try at once")
}

// destroy has the host let go of all that a row stands for: the name first, so that nobody
// starts from memory that is about to go.
func (s *Service) destroy(ctx context.Context, row *Template) error {
	if row.Type == Base {
		if err := s.dropTemplate(ctx, row.Name); err != nil {
			return err
		}
	}
	if row.SnapshotID == "" {
		return nil
	}
	return s.dropSnapshot(ctx, row.SnapshotID)
}

// dropTemplate has the host forget a template.
func (s *Service) dropTemplate(ctx context.Context, name string) error {
	err := forget(host.Repeat(ctx, func() (any, error) {
		return s.client.DeleteTemplate(ctx, connect.NewRequest(&hostv1.DeleteTemplateRequest{Name: name}))
	}))
	if !fault.Is(err, fault.FailedPrecondition) {
		return err
	}
	// A name that the host has taken for one of its own since: ours is not there.
	list, lerr := s.hostTemplates(ctx)
	if lerr != nil || !list[name].GetBuiltByHost() {
		return err
	}
	return nil
}

// dropSnapshot has the host forget a snapshot.
func (s *Service) dropSnapshot(ctx context.Context, id string) error {
	return forget(host.Repeat(ctx, func() (any, error) {
		return s.client.DeleteSnapshot(ctx, connect.NewRequest(&hostv1.DeleteSnapshotRequest{SnapshotId: id}))
	}))
}

// forget is the error of a delete: what is not there is deleted.
func forget(_ any, err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func stopping() error {
	return fault.New(fault.Unavailable, "", "", "the control plane is stopping").WithHint("try again in a moment")
}
