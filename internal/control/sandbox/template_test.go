package sandbox_test

import (
	"context"
	"errors"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

func (e *env) template(name, from string, diskOnly bool) template.View {
	e.Helper()
	t, err := e.CreateTemplate(e.Context(), sandbox.TemplateRequest{Name: name, From: from, DiskOnly: diskOnly})
	require.NoError(e, err)
	return t
}

func TestTemplateOfASandbox(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	var steps []string
	made, err := e.CreateTemplate(t.Context(), sandbox.TemplateRequest{Name: "mine", From: id,
		Progress: func(step, _ string) { steps = append(steps, step) }})
	require.NoError(t, err)
	require.Equal(t, []string{"export"}, steps)
	require.Equal(t, store.BaseTemplate, made.Type)
	require.Equal(t, store.TemplateReady, made.State)
	require.Equal(t, "sha256:mine", made.Digest)
	require.Equal(t, "base", made.Parent)
	require.Equal(t, id, made.SourceSandboxID)
	require.False(t, made.DiskOnly)
	require.NotEqual(t, made.ID, made.SnapshotID)
	require.NotNil(t, e.agent.Snapshot(made.SnapshotID), "its memory")
	require.Equal(t, [3]int{1, 512, 5120}, [3]int{made.VCPUs, made.MemoryMB, made.DiskSizeMB})
	require.EqualValues(t, 209<<20, made.SizeBytes, "files and memory")
	require.EqualValues(t, 2, e.row(id).Generation)
	require.Empty(t, e.row(id).ClaimID)
	snaps, err := e.templates.List(t.Context(), template.Snapshot, "")
	require.NoError(t, err)
	require.Empty(t, snaps, "the hidden one is not shown")

	bare := e.template("bare", id, true)
	require.True(t, bare.DiskOnly)
	require.Empty(t, bare.SnapshotID)
	require.Zero(t, bare.VCPUs)
	require.EqualValues(t, 200<<20, bare.SizeBytes)
}

func TestTemplateOfASnapshot(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	snap := e.snapshot(id, "s")
	require.NoError(t, e.Delete(t.Context(), id))
	byName, byID := e.template("a", "s", false), e.template("b", snap.ID, true)
	for _, made := range []template.View{byName, byID} {
		require.Equal(t, "s", made.Parent)
		require.Equal(t, id, made.SourceSandboxID)
		require.Equal(t, store.TemplateReady, made.State)
	}
	view, err := e.templates.Get(t.Context(), "s")
	require.NoError(t, err)
	require.Equal(t, 2, view.Children)
}

func TestBadTemplates(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.snapshot(id, "s")
	for _, c := range []struct {
		name, from string
		kind       fault.Kind
		text       string
	}{
		{"Bad", id, fault.Invalid, "name is"},
		{"", id, fault.Invalid, "name is"},
		{"base", id, fault.AlreadyExists, "base"},
		{"s", id, fault.AlreadyExists, "a template or snapshot s already"},
		{"s", "s", fault.AlreadyExists, "a template or snapshot s already"},
		{"x", "", fault.NotFound, "sandbox or snapshot"},
		{"x", "nope", fault.NotFound, "sandbox or snapshot nope"},
		{"x", "aaaaaaaaaaaaaaaaaaaa", fault.NotFound, "sandbox or snapshot"},
		{"x", "base", fault.Invalid, "a template already"},
	} {
		_, err := e.CreateTemplate(t.Context(), sandbox.TemplateRequest{Name: c.name, From: c.from})
		require.True(t, fault.Is(err, c.kind), "%s of %s: %v", c.name, c.from, err)
		require.ErrorContains(t, err, c.text)
	}
	e.agent.PutTemplate(&hostv1.Template{Name: "stray"})
	_, err := e.CreateTemplate(t.Context(), sandbox.TemplateRequest{Name: "stray", From: id})
	require.True(t, fault.Is(err, fault.AlreadyExists), "the host has one that no row knows: %v", err)
	require.NotNil(t, e.agent.Template("stray"))
	require.Zero(t, e.agent.Calls("CreateTemplate"))
	require.Len(t, e.made(), 1)
	require.Empty(t, e.row(id).ClaimID)
}

func TestTemplateLostReplies(t *testing.T) {
	for from, of := range map[string]func(*env, string) string{
		"sandbox":  func(_ *env, id string) string { return id },
		"snapshot": func(e *env, id string) string { return e.snapshot(id, "s").Name },
	} {
		t.Run(from, func(t *testing.T) {
			e := newEnv(t)
			id := e.create().ID
			source := of(e, id)
			e.agent.After(once(unanswered("CreateTemplate")))
			made := e.template("repeated", source, false)
			require.NotNil(t, e.agent.Snapshot(made.SnapshotID))
			require.Equal(t, 2, e.agent.Calls("CreateTemplate"))
			require.Equal(t, 1, e.agent.Effects("CreateTemplate"))
			e.agent.After(unanswered("CreateTemplate"))
			made = e.template("found", source, false)
			require.Equal(t, store.TemplateReady, made.State)
			require.NotNil(t, e.agent.Snapshot(made.SnapshotID))
			require.Empty(t, e.row(id).ClaimID)
		})
	}
}

func TestFailedTemplateLeavesNothing(t *testing.T) {
	for from, of := range map[string]func(*env, string) string{
		"sandbox":  func(_ *env, id string) string { return id },
		"snapshot": func(e *env, id string) string { return e.snapshot(id, "s").Name },
	} {
		t.Run(from, func(t *testing.T) {
			e := newEnv(t)
			id := e.create().ID
			source := of(e, id)
			n := len(e.made())
			e.agent.Before(failing("CreateTemplate", connect.NewError(connect.CodeResourceExhausted, errors.New("disk is full"))))
			_, err := e.CreateTemplate(t.Context(), sandbox.TemplateRequest{Name: "x", From: source})
			require.True(t, fault.Is(err, fault.ResourceExhausted), "%v", err)
			require.Len(t, e.made(), n)
			require.Empty(t, e.row(id).ClaimID)
			require.Empty(t, e.row(id).Reason)
			require.Equal(t, store.Running, e.row(id).State)
		})
	}
}

func TestTemplateOutlivesItsClient(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("CreateTemplate"))
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := e.CreateTemplate(ctx, sandbox.TemplateRequest{Name: "mine", From: id})
		done <- err
	}()
	<-g.entered
	require.True(t, e.row(id).Claimed(e.now()))
	leave()
	close(g.open)
	require.NoError(t, <-done)
	view, err := e.templates.Get(t.Context(), "mine")
	require.NoError(t, err)
	require.Equal(t, store.TemplateReady, view.State)
}
