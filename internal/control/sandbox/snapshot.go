package sandbox

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

// Snapshot saves a sandbox that runs or is paused, under a name (default: its id), and
// leaves it as it is. The sandbox is marked by a claim before the host is called. A client
// that leaves does not matter: the snapshot stands.
func (s *Service) Snapshot(ctx context.Context, id, name string) (template.View, error) {
	snap := &store.Template{ID: store.NewID(), Type: template.Snapshot, SourceSandboxID: id}
	snap.Name, snap.SnapshotID = or(name, snap.ID), snap.ID
	return s.capture(ctx, capture{
		verb: verbSnapshot, sandbox: id, row: snap,
		call: func(ctx context.Context, op *hostv1.Operation) (template.Found, *hostv1.Sandbox, error) {
			resp, err := s.client.CreateSnapshot(ctx, connect.NewRequest(
				&hostv1.CreateSnapshotRequest{Operation: op, SandboxId: id, SnapshotId: snap.ID}))
			if err != nil {
				return template.Found{}, nil, err
			}
			if resp.Msg.GetSnapshot() == nil {
				return template.Found{}, nil, fault.New(fault.Internal, "", "", "the host's answer has no snapshot")
			}
			return template.Found{Snapshot: resp.Msg.GetSnapshot()}, resp.Msg.GetSandbox(), nil
		},
	})
}

// capture is a template that is made of a sandbox.
type capture struct {
	verb    verb
	sandbox string
	row     *store.Template
	call    func(ctx context.Context, op *hostv1.Operation) (template.Found, *hostv1.Sandbox, error)
}

// capture claims the sandbox, makes the template's row, calls the host and settles both.
func (s *Service) capture(ctx context.Context, c capture) (template.View, error) {
	if err := template.CheckName(c.row.Name); err != nil {
		return template.View{}, err
	}
	if _, err := s.find(ctx, c.sandbox); err != nil {
		return template.View{}, err
	}
	if err := s.templates.Free(ctx, c.row.Name); err != nil { // before the sandbox is bothered
		return template.View{}, err
	}
	if err := s.begin(); err != nil {
		return template.View{}, err
	}
	defer s.running.Done()
	reserved := false
	var made *template.Found
	_, err := s.change(ctx, c.verb, c.sandbox, func(ctx context.Context, source *store.Sandbox) error {
		if reserved { // the row was behind its host, and this is the second try
			return nil
		}
		err := s.reserve(ctx, c, source)
		reserved = err == nil
		return err
	}, func(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
		found, report, err := c.call(ctx, op)
		if err == nil {
			made = &found
		}
		return report, err
	})
	if !reserved {
		return template.View{}, err
	}
	return s.captured(ctx, c, made, err)
}

// reserve makes the row of what is about to be made.
func (s *Service) reserve(ctx context.Context, c capture, source *store.Sandbox) error {
	c.row.ParentID = source.TemplateID
	parent, err := s.store.Template(ctx, source.TemplateID)
	switch {
	case err == nil:
		c.row.Digest = parent.Digest
	case !fault.Is(err, fault.NotFound):
		return err
	}
	return s.templates.Reserve(ctx, c.row, s.limit(c.verb))
}

// captured settles the row of what was made. That stands even when the sandbox was deleted
// meanwhile. When the call failed the host is asked, for it may be that only the reply was
// lost; cause is then forgotten.
func (s *Service) captured(ctx context.Context, c capture, made *template.Found, cause error) (template.View, error) {
	ctx = context.WithoutCancel(ctx)
	if made != nil {
		row, err := s.templates.Settle(ctx, c.row, *made)
		if err != nil {
			return template.View{}, err
		}
		return s.templates.View(ctx, row)
	}
	if s.ending.Err() != nil {
		// Cut off by Close, and the host may not have noticed yet: for the next control plane.
		return template.View{}, errors.Join(cause, s.templates.Leave(ctx, c.row))
	}
	row, err := s.templates.Resolve(ctx, c.row)
	if row == nil || err != nil {
		return template.View{}, errors.Join(cause, err)
	}
	return s.templates.View(ctx, row)
}
