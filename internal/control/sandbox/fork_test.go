package sandbox_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

func TestFork(t *testing.T) {
	e := newEnv(t)
	s := spec()
	s.Metadata, s.VCPUs = map[string]string{"job": "7"}, 2
	source, err := e.Create(t.Context(), sandbox.Request{Spec: s})
	require.NoError(t, err)
	made, err := e.Fork(t.Context(), source.ID, sandbox.ForkRequest{Count: 8, Env: map[string]string{"A": "b"}})
	require.NoError(t, err)
	require.Len(t, made.Sandboxes, 8)
	require.EqualValues(t, 25, made.Frozen.Milliseconds())
	require.Equal(t, []store.Phase{{Name: "capture", Microseconds: 2000}}, made.Phases)
	seen := map[string]bool{source.ID: true}
	for _, given := range made.Sandboxes {
		row := e.row(given.ID)
		require.Equal(t, row, given, "the answer is what is stored")
		require.False(t, seen[row.ID])
		seen[row.ID] = true
		require.Equal(t, store.Running, row.State)
		require.Equal(t, source.ID, row.ForkedFrom)
		require.Equal(t, source.TemplateID, row.TemplateID)
		require.Equal(t, "base", row.Template)
		require.Equal(t, [4]int{2, 512, 5120, 300}, [4]int{row.VCPUs, row.MemoryMB, row.DiskSizeMB, row.IdleTimeoutS})
		require.Equal(t, s.Metadata, row.Metadata)
		require.Empty(t, row.ClaimID)
		require.EqualValues(t, 1, row.Generation)
		require.Equal(t, map[string]string{"A": "b"}, e.agent.Envs(row.ID))
	}
	require.EqualValues(t, 2, e.row(source.ID).Generation)
	require.Empty(t, e.row(source.ID).ClaimID)
	base, err := e.templates.Get(t.Context(), "base")
	require.NoError(t, err)
	require.Equal(t, 9, base.Children)

	// Of a paused fork of it, with other wishes.
	_, err = e.Pause(t.Context(), made.Sandboxes[0].ID, false)
	require.NoError(t, err)
	again, err := e.Fork(t.Context(), made.Sandboxes[0].ID, sandbox.ForkRequest{Count: 1,
		IdleTimeoutS: ptr(0), Metadata: map[string]string{}})
	require.NoError(t, err)
	row := e.row(again.Sandboxes[0].ID)
	require.Equal(t, made.Sandboxes[0].ID, row.ForkedFrom)
	require.Zero(t, row.IdleTimeoutS)
	require.Empty(t, row.Metadata)
	require.Equal(t, store.Paused, e.row(made.Sandboxes[0].ID).State, "the source stays as it was")
}

func TestForkRowsAreThereBeforeTheHost(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("ForkSandbox"))
	done := make(chan error, 1)
	go func() { _, err := e.Fork(context.Background(), id, sandbox.ForkRequest{Count: 3}); done <- err }()
	<-g.entered
	require.Equal(t, store.Running, e.row(id).State)
	require.True(t, e.row(id).Claimed(e.now()))
	rows, err := e.store.Sandboxes(t.Context(), store.Filter{State: store.Creating})
	require.NoError(t, err)
	require.Len(t, rows, 3)
	for _, row := range rows {
		require.True(t, row.Claimed(e.now()))
	}
	close(g.open)
	require.NoError(t, <-done)
}

func TestBadForks(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	for name, c := range map[string]struct {
		id   string
		r    sandbox.ForkRequest
		kind fault.Kind
		text string
	}{
		"none":     {id, sandbox.ForkRequest{}, fault.Invalid, "count is 0: must be 1 to 64"},
		"many":     {id, sandbox.ForkRequest{Count: 65}, fault.Invalid, "count is 65"},
		"idle":     {id, sandbox.ForkRequest{Count: 1, IdleTimeoutS: ptr(-1)}, fault.Invalid, "idle_timeout_s is -1"},
		"env":      {id, sandbox.ForkRequest{Count: 1, Env: map[string]string{"1": ""}}, fault.Invalid, "env is"},
		"metadata": {id, sandbox.ForkRequest{Count: 1, Metadata: map[string]string{"": ""}}, fault.Invalid, "metadata"},
		"unknown":  {"aaaaaaaaaaaaaaaaaaaa", sandbox.ForkRequest{Count: 1}, fault.NotFound, "aaaaaaaaaaaaaaaaaaaa"},
	} {
		_, err := e.Fork(t.Context(), c.id, c.r)
		require.True(t, fault.Is(err, c.kind), "%s: %v", name, err)
		require.ErrorContains(t, err, c.text, name)
	}
	require.Zero(t, e.agent.Calls("ForkSandbox"))
	rows, err := e.store.Sandboxes(t.Context(), store.Filter{})
	require.NoError(t, err)
	require.Len(t, rows, 1)
}

// buried says that all forks of a sandbox are deleted rows, and nothing of them at the host.
func (e *env) buried(source string, n int, reason string) {
	e.Helper()
	rows, err := e.store.Sandboxes(context.Background(), store.Filter{State: store.Deleted})
	require.NoError(e, err)
	require.Len(e, rows, n)
	for _, row := range rows {
		require.Equal(e, source, row.ForkedFrom)
		require.Contains(e, row.Reason, reason)
		require.Nil(e, e.agent.Sandbox(row.ID))
	}
	require.Empty(e, e.row(source).ClaimID, "the source's mark is undone")
}

func TestFailedForkLeavesNone(t *testing.T) {
	full := connect.NewError(connect.CodeResourceExhausted, errors.New("no space left on disk"))
	for name, set := range map[string]func(*env){
		"before the effect": func(e *env) { e.agent.Before(failing("ForkSandbox", full)) },
		"after the effect":  func(e *env) { e.agent.After(failing("ForkSandbox", full)) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			id := e.create().ID
			set(e)
			_, err := e.Fork(t.Context(), id, sandbox.ForkRequest{Count: 4})
			require.True(t, fault.Is(err, fault.ResourceExhausted), "%v", err)
			e.buried(id, 4, "no space left on disk")
			require.Equal(t, store.Running, e.row(id).State)
			require.Empty(t, e.row(id).Reason)
		})
	}
}

func TestForkLostReply(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.After(once(unanswered("ForkSandbox")))
	made, err := e.Fork(t.Context(), id, sandbox.ForkRequest{Count: 4})
	require.NoError(t, err)
	require.Len(t, made.Sandboxes, 4)
	require.Equal(t, 2, e.agent.Calls("ForkSandbox"))
	require.Equal(t, 1, e.agent.Effects("ForkSandbox"))
}

func TestForkThatNobodyAnswersIsTakenBack(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.After(unanswered("ForkSandbox"))
	_, err := e.Fork(t.Context(), id, sandbox.ForkRequest{Count: 2})
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
	e.buried(id, 2, "connection reset")
	require.EqualValues(t, 2, e.row(id).Generation, "the source follows its host")
}

func TestForkWithTheHostAway(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Unlisten()
	_, err := e.Fork(t.Context(), id, sandbox.ForkRequest{Count: 2})
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
	rows, err := e.store.Sandboxes(t.Context(), store.Filter{State: store.Deleting})
	require.NoError(t, err)
	require.Len(t, rows, 2, "the reconciler makes sure")
	require.Equal(t, store.Running, e.row(id).State)
}

func TestForkOfASandboxThatPausedByItself(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_PAUSED })
	made, err := e.Fork(t.Context(), id, sandbox.ForkRequest{Count: 2})
	require.NoError(t, err)
	require.Len(t, made.Sandboxes, 2)
	require.Equal(t, store.Paused, e.row(id).State)
	rows, err := e.store.Sandboxes(t.Context(), store.Filter{State: store.Deleted})
	require.NoError(t, err)
	require.Empty(t, rows, "the second try takes the same rows")
}

func TestClientGoneMidFork(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.After(g.hook("ForkSandbox"))
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { _, err := e.Fork(ctx, id, sandbox.ForkRequest{Count: 3}); done <- err }()
	<-g.entered
	leave()
	require.True(t, fault.Is(<-done, fault.Canceled))
	e.buried(id, 3, "client went away")
}

func TestDeletesDuringAFork(t *testing.T) {
	t.Run("of the source", func(t *testing.T) {
		e := newEnv(t)
		id := e.create().ID
		g := newGate()
		e.agent.After(g.hook("ForkSandbox"))
		done := make(chan *sandbox.Forked, 1)
		go func() {
			made, err := e.Fork(context.Background(), id, sandbox.ForkRequest{Count: 2})
			if err != nil {
				t.Error(err)
			}
			done <- made
		}()
		<-g.entered
		require.NoError(t, e.Delete(t.Context(), id))
		close(g.open)
		require.Len(t, (<-done).Sandboxes, 2)
		require.Equal(t, store.Deleted, e.row(id).State)
	})
	t.Run("of a fork", func(t *testing.T) {
		e := newEnv(t)
		id := e.create().ID
		g := newGate()
		e.agent.Before(g.hook("ForkSandbox"))
		done := make(chan *sandbox.Forked, 1)
		go func() {
			made, err := e.Fork(context.Background(), id, sandbox.ForkRequest{Count: 3})
			if err != nil {
				t.Error(err)
			}
			done <- made
		}()
		<-g.entered
		rows, err := e.store.Sandboxes(t.Context(), store.Filter{State: store.Creating})
		require.NoError(t, err)
		require.NoError(t, e.Delete(t.Context(), rows[0].ID))
		close(g.open)
		states := map[store.State]int{}
		for _, row := range (<-done).Sandboxes {
			states[row.State]++
		}
		require.Equal(t, map[store.State]int{store.Running: 2, store.Deleted: 1}, states)
		require.Nil(t, e.agent.Sandbox(rows[0].ID), "what the host made of it after its delete is gone")
	})
}

func TestTwoControlPlanesFork(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	planes := []*sandbox.Service{e.Service, e.another()}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			made, err := planes[i%2].Fork(context.Background(), id, sandbox.ForkRequest{Count: 3})
			if err != nil || len(made.Sandboxes) != 3 {
				t.Error(made, err)
			}
		})
	}
	wg.Wait()
	rows, err := e.store.Sandboxes(t.Context(), store.Filter{State: store.Running})
	require.NoError(t, err)
	require.Len(t, rows, 19)
	require.EqualValues(t, 7, e.row(id).Generation)
}
