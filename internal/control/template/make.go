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
	"github.com/roosthq/roost/internal/undo"
)

// Reserve makes the row of a template that the host is about to be asked for: creating, and
// claimed for so long. A name that is taken, in the table or at the host, is already_exists.
func (s *Service) Reserve(ctx context.Context, row *Template, limit time.Duration) error {
	list, err := s.hostTemplates(ctx)
	if err != nil {
		return err
	}
	if list[row.Name] != nil { // one that has no row yet, or that nobody knows
		return taken(row.Name)
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	now := s.now()
	row.HostID, row.State, row.Version, row.CreatedAt = host.LocalID, store.TemplateCreating, 1, store.At(now)
	row.ClaimID, row.ClaimDeadline = store.NewID(), store.At(now.Add(limit))
	err = s.store.AddTemplate(ctx, row)
	if fault.Is(err, fault.AlreadyExists) {
		return taken(row.Name)
	}
	return err
}

// Free refuses a name that has a row: a look before anybody is bothered. Reserve decides.
func (s *Service) Free(ctx context.Context, name string) error {
	_, err := s.store.Template(ctx, name)
	switch {
	case err == nil:
		return taken(name)
	case fault.Is(err, fault.NotFound):
		return nil
	default:
		return err
	}
}

func taken(name string) error {
	return fault.New(fault.AlreadyExists, "", "", "there is a template or snapshot "+name+" already").
		WithHint("choose another name, or delete that one")
}

// Settle makes a claimed row ready with what the host has made.
func (s *Service) Settle(ctx context.Context, mine *Template, f Found) (*Template, error) {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	next := mine.Copy()
	next.ClaimID, next.ClaimDeadline = "", 0
	take(next, f)
	ok, err := s.store.SwapTemplate(ctx, mine, next)
	if err == nil && !ok {
		err = fault.New(fault.Aborted, "create", kind(mine)+" "+mine.Name, "it was changed meanwhile")
	}
	if err != nil {
		return nil, err
	}
	return next, nil
}

// Resolve ends a creation whose call failed, or whose maker died, by what the host has: the
// row is ready and returned, or is erased (nil). When the host cannot tell, or is still at
// work on the source, the row stays for the reconciler, without its claim.
func (s *Service) Resolve(ctx context.Context, mine *Template) (*Template, error) {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	busy, err := s.sourceBusy(ctx, mine)
	if busy || err != nil {
		return nil, errors.Join(err, s.Leave(ctx, mine))
	}
	f, err := s.Look(ctx, mine)
	switch {
	case err != nil:
		return nil, errors.Join(err, s.Leave(ctx, mine))
	case f.has(mine.Type):
		return s.Settle(ctx, mine, f)
	}
	gone, err := s.claimErase(ctx, mine)
	if err != nil || gone == nil {
		return nil, err
	}
	return nil, s.erase(ctx, gone)
}

// sourceBusy says whether the host still works on the sandbox that a template is made of.
func (s *Service) sourceBusy(ctx context.Context, row *Template) (bool, error) {
	if row.SourceSandboxID == "" {
		return false, nil
	}
	resp, err := s.client.GetSandbox(ctx, connect.NewRequest(&hostv1.GetSandboxRequest{SandboxId: row.SourceSandboxID}))
	switch {
	case fault.Is(err, fault.NotFound):
		return false, nil
	case err != nil:
		return false, host.CallError(err, "ask host about", "sandbox "+row.SourceSandboxID)
	}
	return resp.Msg.GetSandbox().GetState() == hostv1.SandboxState_SANDBOX_STATE_SNAPSHOTTING, nil
}

// Leave gives up the claim of a creation whose end is not known: the reconciler resolves it.
func (s *Service) Leave(ctx context.Context, mine *Template) error {
	if mine.ClaimID == "" {
		return nil
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	next := mine.Copy()
	next.ClaimID, next.ClaimDeadline = "", 0
	_, err := s.store.SwapTemplate(ctx, mine, next)
	return err
}
