package template_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type env struct {
	*testing.T
	*template.Service
	agent *agenttest.Agent
	store *store.Store
}

func newEnv(t *testing.T) *env {
	t.Helper()
	t.Parallel()
	e := &env{T: t, agent: agenttest.New(t)}
	var err error
	e.store, err = store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), store.FileName))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.store.Close()) })
	require.NoError(t, e.store.PutHost(t.Context(), &store.Host{ID: host.LocalID}))
	e.Service = e.another()
	return e
}

// another is a second control plane on the same database.
func (e *env) another() *template.Service {
	s := template.New(e.store, e.agent.Client, slog.New(slog.DiscardHandler), time.Now)
	e.Cleanup(s.Stop)
	return s
}

// add makes a row of a type, and what it stands for at the host.
func (e *env) add(name string, t store.TemplateType, change func(*store.Template)) *store.Template {
	e.Helper()
	row := &store.Template{ID: store.NewID(), Name: name, Type: t, State: store.TemplateReady, HostID: host.LocalID,
		Version: 1, CreatedAt: store.At(time.Now())}
	row.SnapshotID = row.ID
	if change != nil {
		change(row)
	}
	require.NoError(e, e.store.AddTemplate(e.Context(), row))
	if row.SnapshotID != "" {
		e.agent.PutSnapshot(&hostv1.Snapshot{Id: row.SnapshotID})
	}
	if t == store.BaseTemplate {
		e.agent.PutTemplate(&hostv1.Template{Name: name, DiskBytes: 1 << 20})
	}
	return row
}

func (e *env) names(t store.TemplateType) []string {
	e.Helper()
	list, err := e.List(e.Context(), t, "")
	require.NoError(e, err)
	var out []string
	for _, v := range list {
		out = append(out, v.Name)
	}
	return out
}

func TestTheHostsOwn(t *testing.T) {
	e := newEnv(t)
	require.ElementsMatch(t, []string{"base", "other"}, e.names(""))
	base, err := e.Get(t.Context(), "base")
	require.NoError(t, err)
	require.True(t, base.BuiltByHost)
	require.Equal(t, []store.Size{{VCPUs: 1, MemoryMB: 512}}, base.Warm)
	require.EqualValues(t, 3<<20, base.SizeBytes)
	require.Equal(t, time.Unix(1e9, 0).UTC(), base.CreatedAt.Time())
	version := base.Version
	require.NoError(t, e.Sync(t.Context()))
	base, err = e.Get(t.Context(), base.ID)
	require.NoError(t, err)
	require.Equal(t, version, base.Version, "no write without a change")

	e.agent.PutTemplate(&hostv1.Template{Name: "base", Digest: "sha256:new", BuiltByHost: true})
	e.agent.ForgetTemplate("other")
	e.agent.PutTemplate(&hostv1.Template{Name: "made-elsewhere"})
	require.Equal(t, []string{"base"}, e.names(""), "one that is gone goes; one that is not the host's is no business of a list")
	changed, err := e.Get(t.Context(), "base")
	require.NoError(t, err)
	require.Equal(t, "sha256:new", changed.Digest)

	e.agent.ForgetTemplate("base")
	require.Empty(t, e.names(""))
	e.agent.PutTemplate(&hostv1.Template{Name: "base", BuiltByHost: true})
	again, err := e.Get(t.Context(), "base")
	require.NoError(t, err, "a name that the table lacks is asked for")
	require.Equal(t, base.ID, again.ID, "sandboxes keep their template")
}

func TestTheHostTakesNoUsersName(t *testing.T) {
	e := newEnv(t)
	mine := e.add("tools", store.SnapshotTemplate, nil)
	e.agent.PutTemplate(&hostv1.Template{Name: "tools", BuiltByHost: true})
	require.ElementsMatch(t, []string{"base", "other", "tools"}, e.names(""))
	got, err := e.Get(t.Context(), "tools")
	require.NoError(t, err)
	require.Equal(t, mine.ID, got.ID)
}

func TestTwoControlPlanesSync(t *testing.T) {
	e := newEnv(t)
	planes := []*template.Service{e.Service, e.another()}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if err := planes[i%2].Sync(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Len(t, e.names(""), 2)
}

func TestUnknownNamesTheKnown(t *testing.T) {
	e := newEnv(t)
	_, err := e.Get(t.Context(), "nope")
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.Equal(t, "known templates: base, other", fault.HintOf(err))
	for i := range 7 {
		e.add(fmt.Sprint("s", i), store.SnapshotTemplate, func(r *store.Template) {
			r.CreatedAt = store.At(time.Now().Add(time.Duration(i) * time.Hour))
		})
	}
	e.add("lost", store.SnapshotTemplate, func(r *store.Template) { r.State = store.TemplateLost })
	_, err = e.Get(t.Context(), "nope")
	require.Equal(t, "known templates: base, other; snapshots: s6, s5, s4, s3, s2, …", fault.HintOf(err))
	_, err = e.GetSnapshot(t.Context(), "base")
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	e.agent.Unlisten()
	_, err = e.Get(t.Context(), "base")
	require.NoError(t, err, "what is known is shown without the host")
	list, err := e.List(t.Context(), "", "")
	require.NoError(t, err)
	require.Len(t, list, 10)
	_, err = e.Get(t.Context(), "nope")
	require.True(t, fault.Is(err, fault.Unavailable), "what is not may be a new one: %v", err)
}

func TestDelete(t *testing.T) {
	e := newEnv(t)
	snap := e.add("s", store.SnapshotTemplate, nil)
	made := e.add("m", store.BaseTemplate, func(r *store.Template) { r.SnapshotID = store.NewID() })
	bare := e.add("b", store.BaseTemplate, func(r *store.Template) { r.SnapshotID = "" })
	for name, c := range map[string]struct {
		only template.Type
		text string
	}{
		"base": {"", "the host builds it"}, "m": {template.Snapshot, "delete snapshot m: it is a template"},
	} {
		err := e.Delete(t.Context(), name, c.only)
		require.True(t, fault.Is(err, fault.FailedPrecondition), "%s: %v", name, err)
		require.ErrorContains(t, err, c.text)
		require.NotEmpty(t, fault.HintOf(err))
	}
	for range 2 { // again is a success
		require.NoError(t, e.Delete(t.Context(), snap.ID, template.Snapshot))
		require.NoError(t, e.Delete(t.Context(), "m", ""))
		require.NoError(t, e.Delete(t.Context(), bare.Name, ""))
		require.NoError(t, e.Delete(t.Context(), "never-was", template.Snapshot))
	}
	require.ElementsMatch(t, []string{"base", "other"}, e.names(""))
	require.Nil(t, e.agent.Snapshot(snap.ID))
	require.Nil(t, e.agent.Snapshot(made.SnapshotID), "its memory goes with it")
	require.Nil(t, e.agent.Template("m"))
	require.Nil(t, e.agent.Template("b"))
	require.Equal(t, 2, e.agent.Calls("DeleteSnapshot"))
	require.Equal(t, 2, e.agent.Calls("DeleteTemplate"))
}

func on(method string, err error) agenttest.Hook {
	return func(_ context.Context, m, _ string) error {
		if m == method {
			return err
		}
		return nil
	}
}

func TestFailedDeleteStaysWanted(t *testing.T) {
	e := newEnv(t)
	made := e.add("m", store.BaseTemplate, func(r *store.Template) { r.SnapshotID = store.NewID() })
	e.agent.Before(on("DeleteSnapshot", connect.NewError(connect.CodeInternal, errors.New("busy"))))
	err := e.Delete(t.Context(), "m", "")
	require.ErrorContains(t, err, "delete template m: busy")
	require.Contains(t, fault.HintOf(err), "keeps trying")
	row, err := e.Get(t.Context(), "m")
	require.NoError(t, err)
	require.Equal(t, store.TemplateDeleting, row.State)
	require.Equal(t, "delete failed: busy", row.Reason)
	require.Empty(t, row.ClaimID)
	require.NotNil(t, e.agent.Snapshot(made.SnapshotID))
	e.agent.Before(nil)
	require.NoError(t, e.Finish(t.Context(), row.Template))
	require.Nil(t, e.agent.Snapshot(made.SnapshotID))
	_, err = e.Get(t.Context(), "m")
	require.True(t, fault.Is(err, fault.NotFound))
}

func TestDeleteLostReply(t *testing.T) {
	e := newEnv(t)
	e.add("s", store.SnapshotTemplate, nil)
	first := true
	e.agent.After(func(_ context.Context, m, _ string) error {
		if m == "DeleteSnapshot" && first {
			first = false
			return connect.NewError(connect.CodeUnavailable, errors.New("connection reset"))
		}
		return nil
	})
	require.NoError(t, e.Delete(t.Context(), "s", ""))
	require.Equal(t, 2, e.agent.Calls("DeleteSnapshot"))
	require.Equal(t, 1, e.agent.Effects("DeleteSnapshot"))
}

func TestFiftyDeletesAreOneCall(t *testing.T) {
	e := newEnv(t)
	e.add("s", store.SnapshotTemplate, nil)
	planes := []*template.Service{e.Service, e.another()}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := planes[i%2].Delete(t.Context(), "s", ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, e.agent.Effects("DeleteSnapshot"))
	require.Equal(t, 1, e.agent.Calls("DeleteSnapshot"))
}

func TestDeleteOutlivesItsClient(t *testing.T) {
	e := newEnv(t)
	e.add("s", store.SnapshotTemplate, nil)
	entered, open := make(chan struct{}), make(chan struct{})
	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "DeleteSnapshot" {
			close(entered)
			<-open
		}
		return nil
	})
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Delete(ctx, "s", "") }()
	<-entered
	leave()
	close(open)
	require.NoError(t, <-done)
	require.NotContains(t, e.names(""), "s")
}

func TestDeleteOfOneThatIsBeingMade(t *testing.T) {
	e := newEnv(t)
	row := e.add("s", store.SnapshotTemplate, func(r *store.Template) {
		r.State, r.ClaimID, r.ClaimDeadline = store.TemplateCreating, "op", store.At(time.Now().Add(time.Hour))
	})
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Delete(ctx, "s", "") }()
	leave()
	require.True(t, fault.Is(<-done, fault.Canceled), "it is waited for")
	go func() { done <- e.Delete(t.Context(), "s", "") }()
	_, err := e.Settle(t.Context(), row, template.Found{Snapshot: e.agent.Snapshot(row.ID)})
	require.NoError(t, err)
	require.NoError(t, <-done)
	require.Nil(t, e.agent.Snapshot(row.ID))
}

func TestStopEndsWaitsAndDeletes(t *testing.T) {
	e := newEnv(t)
	e.add("s", store.SnapshotTemplate, nil)
	entered := make(chan struct{})
	e.agent.Before(func(ctx context.Context, m, _ string) error {
		if m == "DeleteSnapshot" {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- e.Delete(t.Context(), "s", "") }()
	<-entered
	e.Stop()
	require.Error(t, <-done)
	row, err := e.Get(t.Context(), "s")
	require.NoError(t, err)
	require.Equal(t, store.TemplateDeleting, row.State, "the next control plane repeats it")
	require.True(t, fault.Is(e.Delete(t.Context(), "s", ""), fault.Unavailable))
}

// A creation whose maker died is decided by what the host has.
func TestResolve(t *testing.T) {
	creating := func(r *store.Template) { r.State, r.ClaimID = store.TemplateCreating, "op" }
	withMemory := func(r *store.Template) { creating(r); r.SnapshotID = store.NewID() }
	bare := func(r *store.Template) { creating(r); r.SnapshotID, r.DiskOnly = "", true }
	ready := store.TemplateReady
	for name, c := range map[string]struct {
		t      store.TemplateType
		row    func(*store.Template)
		lose   func(*env, *store.Template)
		want   store.TemplateState // "" for gone
		memory bool
	}{
		"snapshot there":          {store.SnapshotTemplate, creating, nil, ready, true},
		"snapshot not there":      {store.SnapshotTemplate, creating, func(e *env, r *store.Template) { e.agent.ForgetSnapshot(r.ID) }, "", false},
		"template there":          {store.BaseTemplate, withMemory, nil, ready, true},
		"template without memory": {store.BaseTemplate, bare, nil, ready, false},
		"template not there":      {store.BaseTemplate, bare, func(e *env, r *store.Template) { e.agent.ForgetTemplate(r.Name) }, "", false},
		"only the memory there":   {store.BaseTemplate, withMemory, func(e *env, r *store.Template) { e.agent.ForgetTemplate(r.Name) }, "", false},
		"only the files there":    {store.BaseTemplate, withMemory, func(e *env, r *store.Template) { e.agent.ForgetSnapshot(r.SnapshotID) }, ready, false},
		"name is the host's now": {store.BaseTemplate, withMemory, func(e *env, r *store.Template) {
			e.agent.PutTemplate(&hostv1.Template{Name: r.Name, BuiltByHost: true})
		}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			row := e.add("x", c.t, c.row)
			if c.lose != nil {
				c.lose(e, row)
			}
			got, err := e.Resolve(t.Context(), row)
			require.NoError(t, err)
			if c.want == "" {
				require.Nil(t, got)
				_, err := e.store.Template(t.Context(), row.ID)
				require.True(t, fault.Is(err, fault.NotFound))
				if row.SnapshotID != "" {
					require.Nil(t, e.agent.Snapshot(row.SnapshotID), "nothing is left at the host")
				}
				return
			}
			require.Equal(t, c.want, got.State)
			require.Equal(t, c.memory, got.SnapshotID != "")
			require.Empty(t, got.ClaimID)
		})
	}
}

func TestResolveWaitsForTheSource(t *testing.T) {
	e := newEnv(t)
	row := e.add("x", store.SnapshotTemplate, func(r *store.Template) {
		r.State, r.ClaimID, r.SourceSandboxID = store.TemplateCreating, "op", "source"
	})
	e.agent.ForgetSnapshot(row.ID)
	e.agent.Put(&hostv1.Sandbox{Id: "source", State: hostv1.SandboxState_SANDBOX_STATE_SNAPSHOTTING})
	got, err := e.Resolve(t.Context(), row)
	require.NoError(t, err)
	require.Nil(t, got)
	row, err = e.store.Template(t.Context(), row.ID)
	require.NoError(t, err, "the host is still at it")
	require.Equal(t, store.TemplateCreating, row.State)
	e.agent.Put(&hostv1.Sandbox{Id: "source", State: hostv1.SandboxState_SANDBOX_STATE_RUNNING})
	_, err = e.Resolve(t.Context(), row)
	require.NoError(t, err)
	_, err = e.store.Template(t.Context(), row.ID)
	require.True(t, fault.Is(err, fault.NotFound))
}

func TestHealLeavesWhatIsNotAtRest(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, row := range map[string]*store.Template{
		"creating": {State: store.TemplateCreating}, "deleting": {State: store.TemplateDeleting},
		"claimed":    {State: store.TemplateReady, ClaimID: "op", ClaimDeadline: store.At(now.Add(time.Hour))},
		"the host's": {State: store.TemplateReady, BuiltByHost: true},
	} {
		_, changed := template.Heal(row, template.Found{}, now)
		require.False(t, changed, name)
	}
}
