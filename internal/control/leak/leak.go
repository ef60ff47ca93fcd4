// Package leak finds what exists on the host and belongs to nobody: what the host finds by
// its own journals, and the sandboxes, snapshots and templates that it has and no row knows.
// Removing is asked for, never done alone. What holds data is removed only when that is asked for
// too: a row may be missing because the database is an old one.
package leak

import (
	"context"
	"errors"
	"slices"
	"strings"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

const (
	noRow = "the host has it, and no row of the control plane knows it"
	// holdsData is why fixing alone leaves it.
	holdsData = "it holds data that somebody may want; `roost doctor leaks --fix --with-data` removes it"
)

// Fix says what to remove.
type Fix int

// The kinds of Fix: nothing, what holds no data, and everything.
const (
	Look Fix = iota
	Debris
	Everything
)

// Leak is something that belongs to nobody.
type Leak = hostv1.Leak

// Service finds and removes leaks.
type Service struct {
	store     *store.Store
	client    hostv1connect.HostServiceClient
	templates *template.Service
}

// New makes a Service.
func New(s *store.Store, client hostv1connect.HostServiceClient, templates *template.Service) *Service {
	return &Service{store: s, client: client, templates: templates}
}

// List finds leaks. With fix each is removed, or says why it was not; a client that leaves does
// not stop that half way.
func (s *Service) List(ctx context.Context, fix Fix) ([]*Leak, error) {
	strays, err := s.strays(ctx)
	if err != nil {
		return nil, err
	}
	if fix != Look {
		var cancel context.CancelFunc
		ctx, cancel = undo.Context(ctx)
		defer cancel()
	}
	for _, l := range strays {
		switch fix {
		case Everything:
			s.remove(ctx, l)
		case Debris:
			l.Error = holdsData
		}
	}
	resp, err := s.client.ListLeaks(ctx, connect.NewRequest(&hostv1.ListLeaksRequest{Fix: fix != Look}))
	if err != nil {
		return nil, host.CallError(err, "look for", "leaks of the host")
	}
	return append(resp.Msg.GetLeaks(), strays...), nil
}

// strays are what the host has without a row. The host is asked first: what is made since
// then had its row before.
func (s *Service) strays(ctx context.Context) ([]*Leak, error) {
	resp, err := s.client.ListSandboxes(ctx, connect.NewRequest(&hostv1.ListSandboxesRequest{}))
	if err != nil {
		return nil, host.CallError(err, "list", "the host's sandboxes")
	}
	inv, err := s.templates.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	var out []*Leak
	for _, sb := range resp.Msg.GetSandboxes() {
		_, err := s.store.Sandbox(ctx, sb.GetId())
		switch {
		case fault.Is(err, fault.NotFound):
			out = append(out, &Leak{Kind: "sandbox", Name: sb.GetId(), Detail: noRow, Bytes: sb.GetDiskBytes() + sb.GetMemoryBytes()})
		case err != nil:
			return nil, err
		}
	}
	rows, err := s.store.Templates(ctx, store.TemplateFilter{})
	if err != nil {
		return nil, err
	}
	for _, snap := range inv.StraySnapshots(rows) {
		out = append(out, &Leak{Kind: "snapshot", Name: snap.GetId(), Detail: noRow, Bytes: snap.GetOwnBytes()})
	}
	for _, t := range inv.StrayTemplates(rows) {
		out = append(out, &Leak{Kind: "template", Name: t.GetName(), Detail: noRow, Bytes: t.GetSizeBytes()})
	}
	slices.SortFunc(out, func(a, b *Leak) int {
		return strings.Compare(a.GetKind()+" "+a.GetName(), b.GetKind()+" "+b.GetName())
	})
	return out, nil
}

// remove has the host let go of a stray.
func (s *Service) remove(ctx context.Context, l *Leak) {
	var err error
	switch l.GetKind() {
	case "sandbox":
		err = s.destroy(ctx, l.GetName())
	case "snapshot":
		_, err = s.templates.DropStraySnapshot(ctx, l.GetName())
	case "template":
		_, err = s.templates.DropStrayTemplate(ctx, l.GetName())
	default:
		err = errors.New("there is no way to remove a " + l.GetKind())
	}
	if l.Removed = err == nil; err != nil {
		l.Error = fault.Message(err)
	}
}

func (s *Service) destroy(ctx context.Context, id string) error {
	resp, err := s.client.GetSandbox(ctx, connect.NewRequest(&hostv1.GetSandboxRequest{SandboxId: id}))
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	op := &hostv1.Operation{OperationId: store.NewID(), Generation: resp.Msg.GetSandbox().GetGeneration()}
	_, err = s.client.DestroySandbox(ctx, connect.NewRequest(&hostv1.DestroySandboxRequest{Operation: op, SandboxId: id}))
	return err
}
