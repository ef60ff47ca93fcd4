package reconcile

import (
	"bytes"
	"context"
	"errors"
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
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type env struct {
	*testing.T
	*Loop
	agent *agenttest.Agent
	log   *syncBuffer

	mu   sync.Mutex
	time time.Time
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func (e *env) now() time.Time          { e.mu.Lock(); defer e.mu.Unlock(); return e.time }
func (e *env) advance(d time.Duration) { e.mu.Lock(); defer e.mu.Unlock(); e.time = e.time.Add(d) }

func newEnv(t *testing.T) *env {
	t.Helper()
	t.Parallel()
	e := &env{T: t, agent: agenttest.New(t), time: time.Now(), log: &syncBuffer{}}
	db, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), store.FileName))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	log := slog.New(slog.NewTextHandler(e.log, nil))
	hosts := host.New(db, e.agent.Client, log, e.now)
	require.NoError(t, hosts.Register(t.Context()))
	tmpl := template.New(db, e.agent.Client, log, e.now)
	t.Cleanup(tmpl.Stop)
	svc := sandbox.New(sandbox.Config{Store: db, Client: e.agent.Client,
		Templates: tmpl, Hosts: hosts, Logger: log, Now: e.now})
	t.Cleanup(svc.Close)
	e.Loop = New(Config{Store: db, Client: e.agent.Client, Sandboxes: svc, Templates: tmpl, Logger: log, Now: e.now,
		Interval: 5 * time.Millisecond})
	return e
}

func (e *env) create() string {
	e.Helper()
	row, err := e.Sandboxes.Create(e.Context(), sandbox.Request{Spec: sandbox.Spec{
		Template: "base", VCPUs: 1, MemoryMB: 512, DiskSizeMB: 5120}})
	require.NoError(e, err)
	return row.ID
}

func (e *env) row(id string) *store.Sandbox {
	e.Helper()
	row, err := e.Store.Sandbox(e.Context(), id)
	require.NoError(e, err)
	return row
}

func (e *env) round() Result {
	e.Helper()
	r, err := e.runOnce(e.Context())
	require.NoError(e, err)
	return r
}

// put overwrites a row, as a crash would have left it.
func (e *env) put(id string, f func(*store.Sandbox)) {
	e.Helper()
	seen := e.row(id)
	next := seen.Copy()
	f(next)
	ok, err := e.Store.Swap(e.Context(), seen, next)
	require.NoError(e, err)
	require.True(e, ok)
}

func TestRowsFollowTheAgent(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	require.Equal(t, Result{}, e.round(), "nothing to do")
	for _, step := range []struct {
		to   hostv1.SandboxState
		want store.State
	}{
		{hostv1.SandboxState_SANDBOX_STATE_PAUSED, store.Paused},
		{hostv1.SandboxState_SANDBOX_STATE_RUNNING, store.Running},
		{hostv1.SandboxState_SANDBOX_STATE_FAILED, store.Failed},
		{hostv1.SandboxState_SANDBOX_STATE_RUNNING, store.Running},
	} {
		e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State, sb.Reason = step.to, "by itself" })
		require.Equal(t, 1, e.round().Healed)
		row := e.row(id)
		require.Equal(t, step.want, row.State)
		require.Equal(t, "by itself", row.Reason)
		require.EqualValues(t, e.agent.Sandbox(id).Generation, row.Generation)
		require.Zero(t, e.round().Healed)
	}
}

// A runtime that the host has lost, or has again, changes no generation, but what is said of it.
func TestReasonFollowsTheAgent(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	for _, reason := range []string{"its runtime does not work here", ""} {
		sb := e.agent.Sandbox(id)
		sb.Reason = reason
		e.agent.Put(sb)
		require.Equal(t, 1, e.round().Healed)
		require.Equal(t, reason, e.row(id).Reason)
		require.Zero(t, e.round().Healed)
	}
}

func TestTransitionalAndOlderReportsChangeNothing(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_PAUSING })
	require.Equal(t, Result{}, e.round())
	e.put(id, func(r *store.Sandbox) { r.Generation = 99 })
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_PAUSED })
	require.Equal(t, Result{}, e.round())
	require.Equal(t, store.Running, e.row(id).State)
}

func TestFiguresAreKept(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	sb := e.agent.Sandbox(id)
	sb.MemoryBytes, sb.DiskBytes = 123, 456
	e.agent.Put(sb)
	require.Equal(t, Result{}, e.round())
	require.EqualValues(t, 123, e.row(id).MemoryUsedBytes)
	require.EqualValues(t, 456, e.row(id).DiskUsedBytes)
	version := e.row(id).Version
	e.round()
	require.Equal(t, version, e.row(id).Version, "no write without a change")
}

func TestClaimedRowsAreLeftAlone(t *testing.T) {
	e := newEnv(t)
	id, gone := e.create(), e.create()
	claim := func(r *store.Sandbox) {
		r.State, r.ClaimID, r.ClaimDeadline = store.Pausing, "op", store.At(e.now().Add(time.Minute))
	}
	e.put(id, claim)
	e.put(gone, claim)
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_PAUSED })
	e.agent.Forget(gone)
	require.Equal(t, Result{}, e.round())
	require.Equal(t, store.Pausing, e.row(id).State)
	e.advance(time.Minute + time.Second)
	r := e.round()
	require.Equal(t, 1, r.Healed)
	require.Equal(t, 1, r.Lost)
	require.Equal(t, store.Paused, e.row(id).State)
	require.Empty(t, e.row(id).ClaimID)
	require.Equal(t, store.Failed, e.row(gone).State)
}

func TestSandboxesThatTheHostLost(t *testing.T) {
	e := newEnv(t)
	running, creating := e.create(), e.create()
	e.put(creating, func(r *store.Sandbox) { r.State, r.ClaimID, r.ClaimDeadline = store.Creating, "op", 1 })
	sb := e.agent.Sandbox(running)
	e.agent.Forget(running)
	e.agent.Forget(creating)
	require.Equal(t, 2, e.round().Lost)
	require.Equal(t, store.Failed, e.row(running).State)
	require.Contains(t, e.row(running).Reason, "no longer knows it")
	require.Equal(t, store.Deleted, e.row(creating).State)
	require.Contains(t, e.row(creating).Reason, "interrupted")
	require.Equal(t, Result{}, e.round())
	// It turns up again (the agent had not read its directory): the row follows.
	e.agent.Put(sb)
	require.Equal(t, 1, e.round().Healed)
	require.Equal(t, store.Running, e.row(running).State)
}

func TestInterruptedCreateThatCameToBe(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.put(id, func(r *store.Sandbox) { r.State, r.ClaimID, r.ClaimDeadline = store.Creating, "op", 1 })
	require.Equal(t, 1, e.round().Healed)
	require.Equal(t, store.Running, e.row(id).State)
}

func TestAShortListIsCheckedByName(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	sb := e.agent.Sandbox(id)
	// The list is taken while the sandbox is away, the question by name comes after.
	e.agent.Forget(id)
	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "GetSandbox" {
			e.agent.Put(sb)
		}
		return nil
	})
	require.Zero(t, e.round().Lost)
	require.Equal(t, store.Running, e.row(id).State)
}

func TestFailedDeletesAreRepeated(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "DestroySandbox" {
			return connect.NewError(connect.CodeInternal, errors.New("busy"))
		}
		return nil
	})
	require.Error(t, e.Sandboxes.Delete(t.Context(), id))
	_, err := e.runOnce(t.Context())
	require.ErrorContains(t, err, "busy")
	e.agent.Before(nil)
	require.Equal(t, 1, e.round().Deleted)
	require.Equal(t, store.Deleted, e.row(id).State)
	require.Nil(t, e.agent.Sandbox(id))
}

func TestStrangersAndLeftovers(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	sb := e.agent.Sandbox(id)
	require.NoError(t, e.Sandboxes.Delete(t.Context(), id))
	e.agent.Put(sb)
	e.agent.Put(&hostv1.Sandbox{Id: "strangerstrangerstra", State: hostv1.SandboxState_SANDBOX_STATE_RUNNING})
	r := e.round()
	require.Equal(t, 1, r.Leftovers)
	require.Equal(t, []string{"strangerstrangerstra"}, r.Unknown)
	require.Nil(t, e.agent.Sandbox(id))
	require.NotNil(t, e.agent.Sandbox("strangerstrangerstra"), "left alone")
}

func TestPurgeAfterADay(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	require.NoError(t, e.Sandboxes.Delete(t.Context(), id))
	e.advance(23 * time.Hour)
	require.Zero(t, e.round().Purged)
	e.advance(2 * time.Hour)
	require.Equal(t, 1, e.round().Purged)
	_, err := e.Store.Sandbox(t.Context(), id)
	require.True(t, fault.Is(err, fault.NotFound))
}

func TestHostAwayChangesNothing(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.agent.Unlisten()
	_, err := e.runOnce(t.Context())
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
	require.Equal(t, store.Running, e.row(id).State)
}

func TestLoopRunsAndTellsOnce(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.agent.Put(&hostv1.Sandbox{Id: "strangerstrangerstra", State: hostv1.SandboxState_SANDBOX_STATE_RUNNING})
	rounds := make(chan struct{}, 1024)
	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "ListSandboxes" {
			rounds <- struct{}{}
		}
		return nil
	})
	require.NoError(t, e.Start(t.Context()))
	require.NoError(t, e.Start(t.Context()), "twice is fine")
	for range 4 {
		<-rounds
	}
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_PAUSED })
	for range 3 {
		<-rounds
	}
	e.Stop()
	e.Stop()
	require.Equal(t, store.Paused, e.row(id).State)
	require.Equal(t, 1, bytes.Count([]byte(e.log.String()), []byte("no row knows")))
	require.Error(t, e.Start(t.Context()), "not again after Stop")
}
