package agenttest

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
)

// builtTemplates are base (3 MiB, warm at 1x512) and other (600 MiB).
func builtTemplates() map[string]*hostv1.Template {
	return map[string]*hostv1.Template{
		"base": {Name: "base", Digest: "sha256:b", SizeBytes: 3 << 20, DiskBytes: 3 << 20, BuiltByHost: true,
			CreatedAt: timestamppb.New(time.Unix(1e9, 0)), Warm: []*hostv1.Resources{{Vcpus: 1, MemoryMb: 512}}},
		"other": {Name: "other", Digest: "sha256:o", SizeBytes: 600 << 20, DiskBytes: 600 << 20, BuiltByHost: true},
	}
}

// Template is a copy of what the agent has, nil for nothing.
func (a *Agent) Template(name string) *hostv1.Template {
	a.mu.Lock()
	defer a.mu.Unlock()
	return clone(a.templates[name])
}

// PutTemplate gives the agent a template; ForgetTemplate takes it away without a trace.
func (a *Agent) PutTemplate(t *hostv1.Template) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.templates[t.Name] = t
}

// ForgetTemplate takes a template away.
func (a *Agent) ForgetTemplate(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.templates, name)
}

// PutLeak gives the agent something that belongs to nobody.
func (a *Agent) PutLeak(l *hostv1.Leak) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leaks = append(a.leaks, l)
}

// ListTemplates reports all.
func (a *Agent) ListTemplates(ctx context.Context, _ *connect.Request[hostv1.ListTemplatesRequest]) (*connect.Response[hostv1.ListTemplatesResponse], error) {
	if err := a.hook(ctx, false, "ListTemplates", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &hostv1.ListTemplatesResponse{}
	for _, t := range a.templates {
		out.Templates = append(out.Templates, clone(t))
	}
	return connect.NewResponse(out), nil
}

// CreateTemplate shows one step and then the template. It knows no operations of snapshots:
// a template of that name is the answer of a repeated call.
func (a *Agent) CreateTemplate(ctx context.Context, r *connect.Request[hostv1.CreateTemplateRequest], s *connect.ServerStream[hostv1.CreateTemplateResponse]) error {
	m := r.Msg
	if err := s.Send(&hostv1.CreateTemplateResponse{Event: &hostv1.CreateTemplateResponse_Progress{
		Progress: &hostv1.Progress{Step: "export", Detail: m.Name}}}); err != nil {
		return err
	}
	if err := a.hook(ctx, false, "CreateTemplate", m.Name); err != nil {
		return err
	}
	made, err := a.makeTemplate(m)
	if err != nil {
		return err
	}
	if err := a.hook(ctx, true, "CreateTemplate", m.Name); err != nil {
		return err
	}
	return s.Send(&hostv1.CreateTemplateResponse{Event: &hostv1.CreateTemplateResponse_Created{Created: made}})
}

func (a *Agent) makeTemplate(m *hostv1.CreateTemplateRequest) (*hostv1.CreatedTemplate, error) {
	if m.SandboxId != "" {
		_, err := a.effect("CreateTemplate", m.SandboxId, m.Operation, func(sb *hostv1.Sandbox) error {
			if err := savable(sb); err != nil {
				return err
			}
			a.addTemplate(m, snapshotOf(sb, m.KeepSnapshotId))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.SandboxId == "" && a.templates[m.Name] == nil {
		from := a.snapshots[m.SnapshotId]
		if from == nil {
			return nil, notFound("no such snapshot")
		}
		kept := clone(from)
		kept.Id = m.KeepSnapshotId
		a.addTemplate(m, kept)
		a.effects["CreateTemplate"]++
	}
	out := &hostv1.CreatedTemplate{Template: clone(a.templates[m.Name])}
	if !m.DiskOnly {
		out.Snapshot = clone(a.snapshots[m.KeepSnapshotId])
	}
	return out, nil
}

// addTemplate needs a.mu.
func (a *Agent) addTemplate(m *hostv1.CreateTemplateRequest, kept *hostv1.Snapshot) {
	a.templates[m.Name] = &hostv1.Template{Name: m.Name, Digest: "sha256:" + m.Name, SizeBytes: 200 << 20,
		DiskBytes: 200 << 20, CreatedAt: timestamppb.Now()}
	if !m.DiskOnly {
		a.snapshots[m.KeepSnapshotId] = kept
	}
}

// DeleteTemplate forgets a template; an unknown name succeeds, one of the host's is refused.
func (a *Agent) DeleteTemplate(ctx context.Context, r *connect.Request[hostv1.DeleteTemplateRequest]) (*connect.Response[hostv1.DeleteTemplateResponse], error) {
	name := r.Msg.Name
	if err := a.hook(ctx, false, "DeleteTemplate", name); err != nil {
		return nil, err
	}
	a.mu.Lock()
	t := a.templates[name]
	if t != nil && !t.BuiltByHost {
		delete(a.templates, name)
		a.effects["DeleteTemplate"]++
	}
	a.mu.Unlock()
	if t.GetBuiltByHost() {
		return nil, refused("the host builds it")
	}
	return connect.NewResponse(&hostv1.DeleteTemplateResponse{}), a.hook(ctx, true, "DeleteTemplate", name)
}

// ListLeaks reports what PutLeak gave, and with fix removes it.
func (a *Agent) ListLeaks(ctx context.Context, r *connect.Request[hostv1.ListLeaksRequest]) (*connect.Response[hostv1.ListLeaksResponse], error) {
	if err := a.hook(ctx, false, "ListLeaks", ""); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &hostv1.ListLeaksResponse{}
	for _, l := range a.leaks {
		l = clone(l)
		l.Removed = r.Msg.Fix
		out.Leaks = append(out.Leaks, l)
	}
	if r.Msg.Fix {
		a.leaks = nil
	}
	return connect.NewResponse(out), nil
}
