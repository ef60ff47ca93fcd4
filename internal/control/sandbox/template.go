package sandbox

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

// TemplateRequest is one template to make.
type TemplateRequest struct {
	Name string
	// From is a sandbox's id, or a snapshot's name or id.
	From string
	// DiskOnly leaves the memory out.
	DiskOnly bool
	// Progress, when set, hears what the host does; it must not block.
	Progress func(step, detail string)
}

// CreateTemplate makes a base of a sandbox's or a snapshot's files. A client that leaves does
// not matter: the template stands.
func (s *Service) CreateTemplate(ctx context.Context, r TemplateRequest) (template.View, error) {
	if err := template.CheckName(r.Name); err != nil {
		return template.View{}, err
	}
	row := &store.Template{ID: store.NewID(), Name: r.Name, Type: template.Base, DiskOnly: r.DiskOnly}
	if !r.DiskOnly {
		row.SnapshotID = store.NewID()
	}
	req := &hostv1.CreateTemplateRequest{Name: r.Name, DiskOnly: r.DiskOnly, KeepSnapshotId: row.SnapshotID}
	if _, err := s.find(ctx, r.From); err == nil {
		req.SandboxId, row.SourceSandboxID = r.From, r.From
		return s.templateOfSandbox(ctx, r, row, req)
	} else if !fault.Is(err, fault.NotFound) {
		return template.View{}, err
	}
	return s.templateOfSnapshot(ctx, r, row, req)
}

func (s *Service) templateOfSandbox(ctx context.Context, r TemplateRequest, row *store.Template, req *hostv1.CreateTemplateRequest) (template.View, error) {
	return s.capture(ctx, capture{
		verb: verbTemplate, sandbox: r.From, row: row,
		call: func(ctx context.Context, op *hostv1.Operation) (template.Found, *hostv1.Sandbox, error) {
			req.Operation = op
			made, err := s.callTemplate(ctx, r, req)
			if err != nil {
				return template.Found{}, nil, err
			}
			// The answer does not say what became of the source; the reconciler may have to.
			report, err := s.report(ctx, r.From)
			if err != nil {
				s.log.Debug("source of a template not looked at", "sandbox_id", r.From, "error", err)
			}
			return made, report, nil
		},
	})
}

// templateOfSnapshot needs no claim but the new row's own: a snapshot does not change.
func (s *Service) templateOfSnapshot(ctx context.Context, r TemplateRequest, row *store.Template, req *hostv1.CreateTemplateRequest) (template.View, error) {
	from, err := s.snapshotFrom(ctx, r.From)
	if err != nil {
		return template.View{}, err
	}
	row.ParentID, row.SourceSandboxID, req.SnapshotId = from.ID, from.SourceSandboxID, from.SnapshotID
	if err := s.begin(); err != nil {
		return template.View{}, err
	}
	defer s.running.Done()
	if err := s.templates.Reserve(ctx, row, s.limit(verbTemplate)); err != nil {
		return template.View{}, err
	}
	calling, cancel := s.detach(ctx, verbTemplate)
	defer cancel()
	req.Operation = &hostv1.Operation{OperationId: row.ClaimID}
	made, err := host.Repeat(calling, func() (template.Found, error) { return s.callTemplate(calling, r, req) })
	if err != nil {
		err = host.CallError(err, "make template of", "snapshot "+from.Name)
		return s.captured(ctx, capture{row: row}, nil, err)
	}
	return s.captured(ctx, capture{row: row}, &made, nil)
}

func (s *Service) snapshotFrom(ctx context.Context, name string) (*store.Template, error) {
	from, err := s.templates.Usable(ctx, name)
	var f *fault.Error
	switch {
	case fault.Is(err, fault.NotFound) && errors.As(err, &f):
		return nil, &fault.Error{Kind: fault.NotFound, Op: "find", Object: "sandbox or snapshot " + clip(name),
			Err: errors.New("there is none of that id or name"), Hint: f.Hint}
	case err != nil:
		return nil, err
	case from.Type != template.Snapshot:
		return nil, invalid("from", fmt.Sprintf("%q", clip(name)), "that is a template already; a sandbox or a snapshot is needed")
	}
	return from, nil
}

// callTemplate is one CreateTemplate: progress, then the template.
func (s *Service) callTemplate(ctx context.Context, r TemplateRequest, req *hostv1.CreateTemplateRequest) (template.Found, error) {
	stream, err := s.client.CreateTemplate(ctx, connect.NewRequest(req))
	if err != nil {
		return template.Found{}, err
	}
	defer stream.Close()
	var made template.Found
	for stream.Receive() {
		msg := stream.Msg()
		if p := msg.GetProgress(); p != nil && r.Progress != nil {
			r.Progress(p.GetStep(), p.GetDetail())
		}
		if c := msg.GetCreated(); c != nil {
			made = template.Found{Template: c.GetTemplate(), Snapshot: c.GetSnapshot()}
		}
	}
	if err := stream.Err(); err != nil {
		return template.Found{}, err
	}
	if made.Template == nil {
		return template.Found{}, fault.New(fault.Unavailable, "", "", "the host's answer ended before the template")
	}
	return made, nil
}
