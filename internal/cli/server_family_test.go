package cli_test

import (
	"context"
	"io"
	"slices"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// The server's half that pauses, resumes, forks, and keeps snapshots and templates. It notes
// what it was asked in bodies.

func warmBase() v1.Template {
	t := v1.Template{Id: "tbase", Name: "base", Type: v1.Base, Digest: "sha256:abc", SizeBytes: 300 << 20, Children: ptr(2), State: ptr("ready")}
	t.WarmSizes = &[]struct {
		MemoryMb int `json:"memory_mb"`
		Vcpus    int `json:"vcpus"`
	}{{MemoryMb: 512, Vcpus: 1}, {MemoryMb: 512, Vcpus: 1}}
	return t
}

// snapshot is one of sandbox "source", with everything that a table shows.
func snapshot(name, source string) v1.Template {
	return v1.Template{Id: "id-" + name, Name: name, Type: v1.Snapshot, SourceSandboxId: &source, Parent: ptr("base"), SizeBytes: 60 << 20,
		OwnBytes: ptr(int64(12 << 20)), Children: ptr(0), State: ptr("ready"), Runtime: ptr("gvisor"), Isolation: ptr("sentry"), Vcpus: ptr(1), MemoryMb: ptr(512), DiskSizeMb: ptr(5120), FrozenMs: ptr(45.2)}
}

func (s *server) asked(body any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies = append(s.bodies, body)
}

func (s *server) PauseSandbox(_ context.Context, r v1.PauseSandboxRequestObject) (v1.PauseSandboxResponseObject, error) {
	s.asked(*r.Body)
	sandbox, err := s.change(r.Id, func(one *v1.Sandbox) { one.State, one.Reason = v1.Paused, ptr("paused on request") })
	return v1.PauseSandbox200JSONResponse(sandbox), err
}

func (s *server) ResumeSandbox(_ context.Context, r v1.ResumeSandboxRequestObject) (v1.ResumeSandboxResponseObject, error) {
	s.asked(*r.Body)
	s.mu.Lock()
	hint, damaged := s.damaged[r.Id]
	s.mu.Unlock()
	if damaged {
		return nil, apiFailure{500, "data_loss", "resume sandbox " + r.Id + ": verify pages.img: its checksum is wrong", hint}
	}
	sandbox, err := s.change(r.Id, func(one *v1.Sandbox) {
		one.State, one.Reason = v1.Running, nil
		if r.Body.Cold != nil && *r.Body.Cold {
			one.Reason = ptr("booted from its disk\x1b as it was when it ended")
		}
	})
	return v1.ResumeSandbox200JSONResponse(sandbox), err
}

func (s *server) ForkSandbox(_ context.Context, r v1.ForkSandboxRequestObject) (v1.ForkSandboxResponseObject, error) {
	s.asked(*r.Body)
	if _, err := s.sandbox(r.Id); err != nil {
		return nil, err
	}
	return v1.ForkSandbox201JSONResponse(*s.forks), nil
}

func (s *server) ListTemplates(context.Context, v1.ListTemplatesRequestObject) (v1.ListTemplatesResponseObject, error) {
	return v1.ListTemplates200JSONResponse{Templates: s.templates}, nil
}

func (s *server) GetTemplate(_ context.Context, r v1.GetTemplateRequestObject) (v1.GetTemplateResponseObject, error) {
	t, err := s.named(s.templates, r.Name)
	return v1.GetTemplate200JSONResponse(t), err
}

func (s *server) named(list []v1.Template, name string) (v1.Template, error) {
	for _, t := range list {
		if t.Name == name || t.Id == name {
			return t, nil
		}
	}
	return v1.Template{}, apiFailure{404, "not_found", "find template " + name + ": there is none", ""}
}

func (s *server) DeleteTemplate(_ context.Context, r v1.DeleteTemplateRequestObject) (v1.DeleteTemplateResponseObject, error) {
	if r.Name == "base" {
		return nil, apiFailure{409, "failed_precondition", "delete template base: the host builds it", ""}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.templates = slices.DeleteFunc(s.templates, func(t v1.Template) bool { return t.Name == r.Name })
	return v1.DeleteTemplate204Response{}, nil
}

func (s *server) CreateTemplate(_ context.Context, r v1.CreateTemplateRequestObject) (v1.CreateTemplateResponseObject, error) {
	s.asked(*r.Body)
	if r.Body.Name == "base" {
		return nil, apiFailure{409, "already_exists", "create template base: there is one", ""}
	}
	if s.progress == nil {
		return v1.CreateTemplate201JSONResponse{Name: r.Body.Name, SizeBytes: 90 << 20}, nil
	}
	reader, writer := io.Pipe()
	go func() {
		s.progress(func(line string) { _, _ = io.WriteString(writer, line+"\n") })
		_ = writer.Close()
	}()
	return v1.CreateTemplate201ApplicationxNdjsonResponse{Body: reader}, nil
}

func (s *server) ListSnapshots(_ context.Context, r v1.ListSnapshotsRequestObject) (v1.ListSnapshotsResponseObject, error) {
	out := v1.ListSnapshots200JSONResponse{Templates: []v1.Template{}}
	for _, one := range s.snapshots {
		if r.Params.SandboxId == nil || *r.Params.SandboxId == *one.SourceSandboxId {
			out.Templates = append(out.Templates, one)
		}
	}
	return out, nil
}

func (s *server) CreateSnapshot(_ context.Context, r v1.CreateSnapshotRequestObject) (v1.CreateSnapshotResponseObject, error) {
	s.asked(*r.Body)
	source, err := s.sandbox(r.Body.SandboxId)
	if err != nil {
		return nil, err
	}
	name := "ssssssssssssssssssss"
	if r.Body.Name != nil {
		name = *r.Body.Name
	}
	made := snapshot(name, source.Id)
	if source.State == v1.Paused {
		made.FrozenMs = ptr(0.0)
	}
	return v1.CreateSnapshot201JSONResponse(made), nil
}

func (s *server) GetSnapshot(_ context.Context, r v1.GetSnapshotRequestObject) (v1.GetSnapshotResponseObject, error) {
	t, err := s.named(s.snapshots, r.Name)
	return v1.GetSnapshot200JSONResponse(t), err
}

func (s *server) DeleteSnapshot(_ context.Context, r v1.DeleteSnapshotRequestObject) (v1.DeleteSnapshotResponseObject, error) {
	if r.Name == "stuck" {
		return nil, apiFailure{503, "unavailable", "delete snapshot stuck: the host does not answer", "roost doctor"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshots = slices.DeleteFunc(s.snapshots, func(t v1.Template) bool { return t.Name == r.Name })
	return v1.DeleteSnapshot204Response{}, nil
}

func (s *server) ListLeaks(context.Context, v1.ListLeaksRequestObject) (v1.ListLeaksResponseObject, error) {
	return v1.ListLeaks200JSONResponse{Leaks: s.leaks}, nil
}

// RemoveLeaks cannot remove those with an error.
func (s *server) RemoveLeaks(context.Context, v1.RemoveLeaksRequestObject) (v1.RemoveLeaksResponseObject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := slices.Clone(s.leaks)
	for i := range found {
		found[i].Removed = found[i].Error == nil
	}
	s.leaks = slices.DeleteFunc(s.leaks, func(l v1.Leak) bool { return l.Error == nil })
	return v1.RemoveLeaks200JSONResponse{Leaks: found}, nil
}
