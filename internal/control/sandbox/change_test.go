package sandbox_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

func TestLife(t *testing.T) {
	e := newEnv(t)
	row := e.create()
	require.Regexp(t, `^[a-z0-9]{20}$`, row.ID)
	require.Equal(t, store.Running, row.State)
	require.EqualValues(t, 1, row.Generation)
	require.Equal(t, []store.Phase{{Name: "restore", Microseconds: 1500}}, row.Phases)

	row, err := e.Pause(t.Context(), row.ID, false)
	require.NoError(t, err)
	require.Equal(t, store.Paused, row.State)
	require.EqualValues(t, 2, row.Generation)
	row, err = e.Pause(t.Context(), row.ID, false)
	require.NoError(t, err, "pausing a paused sandbox is a success")
	require.Equal(t, store.Paused, row.State)
	_, err = e.Ready(t.Context(), row.ID, "exec in")
	require.ErrorContains(t, err, "sandbox "+row.ID+" is paused")
	require.True(t, fault.Is(err, fault.FailedPrecondition))
	require.Equal(t, "resume it: roost resume "+row.ID, fault.HintOf(err))

	row, err = e.SetTimeout(t.Context(), row.ID, 0)
	require.NoError(t, err)
	require.Equal(t, store.Paused, row.State)
	require.Zero(t, row.IdleTimeoutS)

	row, err = e.Resume(t.Context(), row.ID, false)
	require.NoError(t, err)
	_, err = e.Resume(t.Context(), row.ID, false)
	require.NoError(t, err, "resuming a running sandbox is a success")
	require.Equal(t, 1, e.agent.Calls("PauseSandbox"))
	require.Equal(t, 1, e.agent.Calls("ResumeSandbox"))

	require.NoError(t, e.Delete(t.Context(), row.ID))
	require.NoError(t, e.Delete(t.Context(), row.ID), "deleting twice is a success")
	require.Nil(t, e.agent.Sandbox(row.ID))
	row, err = e.Get(t.Context(), row.ID)
	require.NoError(t, err)
	require.Equal(t, store.Deleted, row.State)
	require.Equal(t, "deleted on request", row.Reason)
	_, err = e.Pause(t.Context(), row.ID, false)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	rows, _, err := e.List(t.Context(), "", 10, "")
	require.NoError(t, err)
	require.Empty(t, rows)
	rows, _, err = e.List(t.Context(), store.Deleted, 10, "")
	require.NoError(t, err)
	require.Len(t, rows, 1)
}

func TestUnknownIDsNeverReachTheHost(t *testing.T) {
	e := newEnv(t)
	for _, id := range []string{"", "x", "aaaaaaaaaaaaaaaaaaaa", "../../../../etc/passwd", "AAAAAAAAAAAAAAAAAAAA", "aaaaaaaaaaaaaaaaaaaa\n"} {
		_, err := e.Get(t.Context(), id)
		require.True(t, fault.Is(err, fault.NotFound), "%q: %v", id, err)
		_, err = e.Pause(t.Context(), id, false)
		require.True(t, fault.Is(err, fault.NotFound))
		require.True(t, fault.Is(e.Delete(t.Context(), id), fault.NotFound))
		_, err = e.Console(t.Context(), id, 0)
		require.True(t, fault.Is(err, fault.NotFound))
	}
	for _, m := range []string{"GetSandbox", "PauseSandbox", "DestroySandbox", "GetConsole"} {
		require.Zero(t, e.agent.Calls(m), m)
	}
}

// atOnce runs f 50 times at once and counts the errors.
func atOnce(f func() error) (failed int64, last error) {
	var n atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := f(); err != nil {
				n.Add(1)
				mu.Lock()
				last = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return n.Load(), last
}

func TestFiftyPausesAreOneCall(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	failed, err := atOnce(func() error { _, err := e.Pause(context.Background(), id, false); return err })
	require.Zero(t, failed, "%v", err)
	require.Equal(t, 1, e.agent.Calls("PauseSandbox"))
	failed, err = atOnce(func() error { _, err := e.Resume(context.Background(), id, false); return err })
	require.Zero(t, failed, "%v", err)
	require.Equal(t, 1, e.agent.Calls("ResumeSandbox"))
}

func TestFiftyDeletesAreOneCall(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	failed, err := atOnce(func() error { return e.Delete(context.Background(), id) })
	require.Zero(t, failed, "%v", err)
	require.Equal(t, 1, e.agent.Calls("DestroySandbox"))
}

func TestFiftyPausesShareOneFailure(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(func(ctx context.Context, m, id string) error {
		if err := g.hook("PauseSandbox")(ctx, m, id); err != nil || m != "PauseSandbox" {
			return err
		}
		return connect.NewError(connect.CodeResourceExhausted, errors.New("no space left on disk"))
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := e.Pause(context.Background(), id, false)
		if !fault.Is(err, fault.ResourceExhausted) {
			t.Errorf("the owner's error keeps its kind: %v", err)
		}
	})
	<-g.entered
	require.Equal(t, store.Pausing, e.row(id).State)
	done := make(chan error, 1)
	go func() { _, err := e.Pause(context.Background(), id, false); done <- err }()
	close(g.open)
	wg.Wait()
	err := <-done
	// The second came while the first ran, or just after it and tried itself.
	require.True(t, fault.Is(err, fault.Aborted) || fault.Is(err, fault.ResourceExhausted), "%v", err)
	row := e.row(id)
	require.Equal(t, store.Running, row.State, "the claim was reverted")
	require.Empty(t, row.ClaimID)
	require.Contains(t, row.Reason, "no space left on disk")
	e.agent.Before(nil)
	row, err = e.Pause(t.Context(), id, false)
	require.NoError(t, err)
	require.Empty(t, row.Reason)
}

func TestWaitIsBounded(t *testing.T) {
	e := newEnv(t, func(c *sandbox.Config) { c.WaitLimit = 50 * time.Millisecond })
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("PauseSandbox"))
	first := make(chan error, 1)
	go func() { _, err := e.Pause(context.Background(), id, false); first <- err }()
	<-g.entered
	_, err := e.Pause(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.Aborted), "%v", err)
	require.ErrorContains(t, err, "is pausing")
	_, err = e.Resume(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.Aborted), "%v", err)
	close(g.open)
	require.NoError(t, <-first)
}

func TestClientGoneDoesNotCancelAPause(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("PauseSandbox"))
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { _, err := e.Pause(ctx, id, false); done <- err }()
	<-g.entered
	leave()
	close(g.open)
	require.NoError(t, <-done)
	require.Equal(t, store.Paused, e.row(id).State)
}

func TestLostReplies(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	var lost atomic.Int64
	e.agent.After(func(_ context.Context, m, _ string) error {
		if (m == "PauseSandbox" || m == "ResumeSandbox" || m == "DestroySandbox") && lost.Add(1)%2 == 1 {
			return connect.NewError(connect.CodeUnavailable, errors.New("connection reset"))
		}
		return nil
	})
	_, err := e.Pause(t.Context(), id, false)
	require.NoError(t, err, "the repeated operation id is answered")
	_, err = e.Resume(t.Context(), id, false)
	require.NoError(t, err)
	require.NoError(t, e.Delete(t.Context(), id))
	for _, m := range []string{"PauseSandbox", "ResumeSandbox", "DestroySandbox"} {
		require.Equal(t, 1, e.agent.Effects(m), m)
		require.Equal(t, 2, e.agent.Calls(m), m)
	}
}

func TestLostReplyOfAnotherKindIsFoundByAsking(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.After(failing("PauseSandbox", connect.NewError(connect.CodeInternal, errors.New("cut off"))))
	row, err := e.Pause(t.Context(), id, false)
	require.NoError(t, err)
	require.Equal(t, store.Paused, row.State)
	require.EqualValues(t, 2, e.row(id).Generation)
}

func TestHostAwayRevertsTheClaim(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Unlisten()
	_, err := e.Pause(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
	require.Contains(t, fault.HintOf(err), "host agent")
	row := e.row(id)
	require.Equal(t, store.Running, row.State)
	require.Empty(t, row.ClaimID)
	row, err = e.Get(t.Context(), id)
	require.NoError(t, err, "what is known is shown without the host")
	require.Equal(t, store.Running, row.State)

	e.agent.Listen(t)
	_, err = e.Pause(t.Context(), id, false)
	require.NoError(t, err)
}

func TestFailedDeleteStaysWanted(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Before(failing("DestroySandbox", connect.NewError(connect.CodeInternal, errors.New("busy device"))))
	err := e.Delete(t.Context(), id)
	require.ErrorContains(t, err, "busy device")
	row := e.row(id)
	require.Equal(t, store.Deleting, row.State)
	require.Empty(t, row.ClaimID)
	require.Contains(t, row.Reason, "busy device")
	_, err = e.Resume(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.Aborted), "%v", err)
	e.agent.Before(nil)
	require.NoError(t, e.Delete(t.Context(), id))
	require.Equal(t, store.Deleted, e.row(id).State)
}

func TestDeleteTakesOverAPause(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("PauseSandbox"))
	paused := make(chan error, 1)
	go func() { _, err := e.Pause(context.Background(), id, false); paused <- err }()
	<-g.entered
	require.NoError(t, e.Delete(t.Context(), id))
	close(g.open)
	require.Error(t, <-paused)
	require.Equal(t, store.Deleted, e.row(id).State, "the loser does not touch the row")
	require.Nil(t, e.agent.Sandbox(id))
}

func TestAgentsOwnPauseIsFollowed(t *testing.T) {
	e := newEnv(t)
	for name, change := range map[string]func(id string) (store.State, error){
		"pause":  func(id string) (store.State, error) { r, err := e.Pause(t.Context(), id, false); return state(r), err },
		"resume": func(id string) (store.State, error) { r, err := e.Resume(t.Context(), id, false); return state(r), err },
		"delete": func(id string) (store.State, error) { return store.Deleted, e.Delete(t.Context(), id) },
	} {
		id := e.create().ID
		e.agent.Change(id, func(sb *hostv1.Sandbox) {
			sb.State, sb.Reason = hostv1.SandboxState_SANDBOX_STATE_PAUSED, "idle"
		})
		if name == "resume" {
			// Nobody has looked since: the row still says running.
			row, err := e.Get(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, store.Paused, row.State)
			require.Equal(t, "idle", row.Reason)
		}
		got, err := change(id)
		require.NoError(t, err, name)
		require.Equal(t, map[string]store.State{"pause": store.Paused, "resume": store.Running, "delete": store.Deleted}[name], got)
	}
}

func state(r *store.Sandbox) store.State {
	if r == nil {
		return ""
	}
	return r.State
}

func TestExplainNamesTheState(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	cause := fault.New(fault.Unavailable, "", "", "connection refused")
	require.Equal(t, cause, e.Explain(t.Context(), id, "exec in", cause))
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_PAUSED })
	require.ErrorContains(t, e.Explain(t.Context(), id, "exec in", cause), "is paused")
}

func TestVanishedSandboxFails(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Forget(id)
	_, err := e.Pause(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.Equal(t, store.Failed, e.row(id).State)
	_, err = e.Resume(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.Equal(t, "start it from its disk: roost resume --cold "+id+", or delete it: roost rm "+id, fault.HintOf(err))
	require.NoError(t, e.Delete(t.Context(), id))
	require.Contains(t, e.row(id).Reason, "no longer knows it")
}

func TestExpiredClaimIsConsulted(t *testing.T) {
	e := newEnv(t)
	seen := e.create()
	dead := seen.Copy()
	dead.State, dead.ClaimID, dead.ClaimDeadline = store.Pausing, "dead", store.At(e.now().Add(time.Minute))
	ok, err := e.store.Swap(t.Context(), seen, dead)
	require.NoError(t, err)
	require.True(t, ok)
	_, err = e.Resume(t.Context(), seen.ID, false)
	require.True(t, fault.Is(err, fault.Aborted), "a live claim is respected: %v", err)
	e.advance(2 * time.Minute)
	row, err := e.Pause(t.Context(), seen.ID, false)
	require.NoError(t, err)
	require.Equal(t, store.Paused, row.State)
}

func TestCloseSettlesWhatRuns(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	g := newGate()
	e.agent.Before(g.hook("PauseSandbox"))
	done := make(chan error, 1)
	go func() { _, err := e.Pause(context.Background(), id, false); done <- err }()
	<-g.entered
	e.Close()
	require.True(t, fault.Is(<-done, fault.Unavailable))
	require.Empty(t, e.row(id).ClaimID)
	_, err := e.Pause(t.Context(), id, false)
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
}
