package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

func (e *env) snapshot(id, name string) template.View {
	e.Helper()
	snap, err := e.Snapshot(e.Context(), id, name)
	require.NoError(e, err)
	return snap
}

// rows of templates, but the host's own.
func (e *env) made() []*store.Template {
	e.Helper()
	all, err := e.store.Templates(context.Background(), store.TemplateFilter{})
	require.NoError(e, err)
	var out []*store.Template
	for _, row := range all {
		if !row.BuiltByHost {
			out = append(out, row)
		}
	}
	return out
}

// another is a second control plane on the same database.
func (e *env) another() *sandbox.Service {
	e.Helper()
	s := sandbox.New(e.config)
	e.Cleanup(s.Close)
	return s
}

func unanswered(method string) agenttest.Hook {
	return failing(method, connect.NewError(connect.CodeUnavailable, errors.New("connection reset")))
}

// once gives a hook's error only the first time.
func once(h agenttest.Hook) agenttest.Hook {
	var done atomic.Bool
	return func(ctx context.Context, m, id string) error {
		if err := h(ctx, m, id); err != nil && done.CompareAndSwap(false, true) {
			return err
		}
		return nil
	}
}

func TestSnapshot(t *testing.T) {
	e := newEnv(t)
	row := e.create()
	e.advance(time.Second)
	snap := e.snapshot(row.ID, "mine")
	require.Equal(t, "mine", snap.Name)
	require.Regexp(t, `^[a-z0-9]{20}$`, snap.ID)
	require.Equal(t, store.SnapshotTemplate, snap.Type)
	require.Equal(t, store.TemplateReady, snap.State)
	require.Equal(t, [3]int{1, 512, 5120}, [3]int{snap.VCPUs, snap.MemoryMB, snap.DiskSizeMB})
	require.Equal(t, "sha256:b", snap.Digest)
	require.Equal(t, "microvm", snap.Runtime)
	require.Equal(t, "emulated", snap.Isolation)
	require.Equal(t, snap.ID, snap.SnapshotID)
	require.EqualValues(t, 25000, snap.FrozenUS)
	require.EqualValues(t, 9<<20, snap.SizeBytes)
	require.EqualValues(t, 2<<20, snap.OwnBytes)
	require.Equal(t, []store.Phase{{Name: "freeze", Microseconds: 1000}}, snap.Phases)
	require.Equal(t, row.ID, snap.SourceSandboxID)
	require.Equal(t, "base", snap.Parent)
	require.Zero(t, snap.Children)
	require.Empty(t, snap.ClaimID)
	source := e.row(row.ID)
	require.Equal(t, store.Running, source.State)
	require.Empty(t, source.ClaimID)
	require.EqualValues(t, 2, source.Generation, "the row follows the host's generation")
	base, err := e.templates.Get(t.Context(), "base")
	require.NoError(t, err)
	require.Equal(t, 2, base.Children, "the sandbox and the snapshot")

	_, err = e.Pause(t.Context(), row.ID, false)
	require.NoError(t, err)
	paused := e.snapshot(row.ID, "")
	require.Equal(t, paused.ID, paused.Name, "the id is its name")
	require.Zero(t, paused.FrozenUS)
	require.Equal(t, store.Paused, e.row(row.ID).State)

	// Of what came from a snapshot.
	child, err := e.Create(t.Context(), sandbox.Request{Spec: sandbox.Spec{Template: "mine"}})
	require.NoError(t, err)
	grandchild := e.snapshot(child.ID, "deeper")
	require.Equal(t, "mine", grandchild.Parent)
	mine, err := e.templates.Get(t.Context(), snap.ID)
	require.NoError(t, err, "by id")
	require.Equal(t, 2, mine.Children)
}

func TestSnapshotMarksItsSource(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("CreateSnapshot"))
	done := make(chan error, 1)
	go func() { _, err := e.Snapshot(context.Background(), id, "s"); done <- err }()
	<-g.entered
	row := e.row(id)
	require.Equal(t, store.Running, row.State, "it runs on")
	require.True(t, row.Claimed(e.now()), "but is marked")
	_, changed := sandbox.Heal(row, nil, e.now())
	require.False(t, changed, "the reconciler leaves it alone")
	_, err := e.Ready(t.Context(), id, "exec in")
	require.NoError(t, err, "commands go on")
	tmpl := e.made()[0]
	require.Equal(t, store.TemplateCreating, tmpl.State)
	require.True(t, tmpl.Claimed(e.now()))
	_, err = e.Create(t.Context(), sandbox.Request{Spec: sandbox.Spec{Template: "s"}})
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.ErrorContains(t, err, "snapshot s is being made")
	_, err = e.Snapshot(t.Context(), id, "s")
	require.True(t, fault.Is(err, fault.AlreadyExists), "%v", err)
	close(g.open)
	require.NoError(t, <-done)
	require.Empty(t, e.row(id).ClaimID)
}

func TestChangesWaitForASnapshot(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("CreateSnapshot"))
	snapped, paused := make(chan error, 1), make(chan error, 1)
	go func() { _, err := e.Snapshot(context.Background(), id, "s"); snapped <- err }()
	<-g.entered
	go func() { _, err := e.Pause(context.Background(), id, false); paused <- err }()
	close(g.open)
	require.NoError(t, <-snapped)
	require.NoError(t, <-paused)
	require.Equal(t, store.Paused, e.row(id).State)

	short := newEnvNow(t, func(c *sandbox.Config) { c.WaitLimit = 30 * time.Millisecond })
	id = short.create().ID
	g = newGate()
	short.agent.Before(g.hook("CreateSnapshot"))
	go func() { _, err := short.Snapshot(context.Background(), id, "s"); snapped <- err }()
	<-g.entered
	_, err := short.Pause(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.Aborted), "%v", err)
	require.ErrorContains(t, err, "is being changed by another request")
	close(g.open)
	require.NoError(t, <-snapped)
}

func TestBadSnapshots(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.snapshot(id, "taken")
	failed := e.create().ID
	e.agent.Change(failed, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_FAILED })
	_, err := e.Get(t.Context(), failed)
	require.NoError(t, err)
	gone := e.create().ID
	require.NoError(t, e.Delete(t.Context(), gone))
	for _, c := range []struct {
		id, name string
		kind     fault.Kind
		text     string
	}{
		{id, "taken", fault.AlreadyExists, "there is a template or snapshot taken already"},
		{id, "base", fault.AlreadyExists, "base"},
		{id, "Upper", fault.Invalid, "name is"},
		{id, "../x", fault.Invalid, "name is"},
		{id, "-x", fault.Invalid, "name is"},
		{id, "x" + string(make([]byte, 300)), fault.Invalid, "name is"},
		{"aaaaaaaaaaaaaaaaaaaa", "x", fault.NotFound, "aaaaaaaaaaaaaaaaaaaa"},
		{"nope", "x", fault.NotFound, "nope"},
		{gone, "x", fault.NotFound, "deleted"},
		{failed, "x", fault.FailedPrecondition, "is failed"},
	} {
		_, err := e.Snapshot(t.Context(), c.id, c.name)
		require.True(t, fault.Is(err, c.kind), "%s %s: %v", c.id, c.name, err)
		require.ErrorContains(t, err, c.text)
	}
	require.Equal(t, 1, e.agent.Calls("CreateSnapshot"), "no side effect")
	require.Len(t, e.made(), 1)
	require.Empty(t, e.row(id).ClaimID, "nobody holds the source")
}

func TestSnapshotLostReplies(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.After(once(unanswered("CreateSnapshot")))
	e.snapshot(id, "repeated")
	require.Equal(t, 2, e.agent.Calls("CreateSnapshot"))
	require.Equal(t, 1, e.agent.Effects("CreateSnapshot"), "the same operation")

	// Nobody ever answers the call, and then a question finds that it is there.
	e.agent.After(unanswered("CreateSnapshot"))
	snap := e.snapshot(id, "found")
	require.Equal(t, store.TemplateReady, snap.State)
	require.EqualValues(t, 2<<20, snap.OwnBytes)
	require.EqualValues(t, 3, e.row(id).Generation)
	require.Empty(t, e.row(id).ClaimID)
}

func TestFailedSnapshotUndoesItsMark(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Before(failing("CreateSnapshot", connect.NewError(connect.CodeResourceExhausted, errors.New("no space left on disk"))))
	_, err := e.Snapshot(t.Context(), id, "s")
	require.True(t, fault.Is(err, fault.ResourceExhausted), "%v", err)
	row := e.row(id)
	require.Equal(t, store.Running, row.State)
	require.Empty(t, row.ClaimID)
	require.Empty(t, row.Reason, "nothing is wrong with the sandbox")
	require.Empty(t, e.made())
	e.agent.Before(nil)
	e.snapshot(id, "s") // the name is free again
}

func TestSnapshotWithTheHostAway(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Unlisten()
	_, err := e.Snapshot(t.Context(), id, "s")
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
	require.Empty(t, e.made())
	require.Empty(t, e.row(id).ClaimID)

	// It goes away in the middle: nobody knows what it has done, so the row waits.
	e.agent.Listen(t)
	e.agent.After(func(_ context.Context, m, _ string) error {
		if m == "CreateSnapshot" {
			e.agent.Unlisten()
		}
		return nil
	})
	_, err = e.Snapshot(t.Context(), id, "s")
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
	tmpl := e.made()[0]
	require.Equal(t, store.TemplateCreating, tmpl.State)
	require.False(t, tmpl.Claimed(e.now()), "the reconciler may look at once")
	require.Empty(t, e.row(id).ClaimID)
	e.agent.After(nil)
	e.agent.Listen(t)
	ready, err := e.templates.Resolve(t.Context(), tmpl)
	require.NoError(t, err)
	require.Equal(t, store.TemplateReady, ready.State)
}

func TestSnapshotOfASandboxThatPausedByItself(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State, sb.Reason = hostv1.SandboxState_SANDBOX_STATE_PAUSED, "idle" })
	snap := e.snapshot(id, "s")
	require.Equal(t, store.TemplateReady, snap.State)
	require.Equal(t, store.Paused, e.row(id).State)
	require.Len(t, e.made(), 1)
	require.Equal(t, 2, e.agent.Calls("CreateSnapshot"), "refused once for its generation")
}

func TestSnapshotOutlivesItsClientAndItsSource(t *testing.T) {
	e := newEnv(t)
	for name, during := range map[string]func(id string, leave func()){
		"client":  func(_ string, leave func()) { leave() },
		"source":  func(id string, _ func()) { require.NoError(t, e.Delete(t.Context(), id)) },
		"neither": func(string, func()) {},
	} {
		id := e.create().ID
		g := newGate()
		e.agent.After(g.hook("CreateSnapshot"))
		ctx, leave := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { _, err := e.Snapshot(ctx, id, name); done <- err }()
		<-g.entered
		during(id, leave)
		close(g.open)
		require.NoError(t, <-done, name)
		snap, err := e.templates.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, store.TemplateReady, snap.State, name)
		leave()
		e.agent.After(nil)
	}
}

// Two control planes on one database: one name is one snapshot, and a sandbox is captured by
// one at a time.
func TestTwoControlPlanesSnapshot(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	planes := []*sandbox.Service{e.Service, e.another()}
	var at, most, taken atomic.Int64
	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "CreateSnapshot" {
			most.Store(max(most.Load(), at.Add(1)))
		}
		return nil
	})
	e.agent.After(func(_ context.Context, m, _ string) error {
		if m == "CreateSnapshot" {
			at.Add(-1)
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := planes[i%2].Snapshot(context.Background(), id, fmt.Sprint("s", i/2))
			if fault.Is(err, fault.AlreadyExists) {
				taken.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 4, taken.Load())
	require.EqualValues(t, 1, most.Load())
	require.Len(t, e.made(), 4)
	for _, row := range e.made() {
		require.NotNil(t, e.agent.Snapshot(row.ID))
	}
	require.EqualValues(t, 5, e.row(id).Generation)
}

func TestCloseEndsASnapshot(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("CreateSnapshot"))
	done := make(chan error, 1)
	go func() { _, err := e.Snapshot(context.Background(), id, "s"); done <- err }()
	<-g.entered
	e.Close()
	require.True(t, fault.Is(<-done, fault.Unavailable))
	require.Empty(t, e.row(id).ClaimID)
	row := e.made()[0]
	require.Equal(t, store.TemplateCreating, row.State, "the next control plane asks the host")
	require.Empty(t, row.ClaimID)
	got, err := e.templates.Resolve(t.Context(), row)
	require.NoError(t, err)
	require.Nil(t, got)
	require.Empty(t, e.made(), "which had nothing of it")
}
