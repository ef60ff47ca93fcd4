package sandbox_test

import (
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

func TestPauseWithoutMemory(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	row, err := e.Pause(t.Context(), id, true)
	require.NoError(t, err)
	require.Equal(t, store.Paused, row.State)
	require.Equal(t, "paused without memory", row.Reason)
}

func TestColdResume(t *testing.T) {
	e := newEnv(t)
	for from, state := range map[store.State]hostv1.SandboxState{
		store.Paused: hostv1.SandboxState_SANDBOX_STATE_PAUSED,
		store.Failed: hostv1.SandboxState_SANDBOX_STATE_FAILED,
		store.Lost:   hostv1.SandboxState_SANDBOX_STATE_LOST,
	} {
		id := e.create().ID
		e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State, sb.Reason = state, "because" })
		row, err := e.Get(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, from, row.State)
		require.Equal(t, "because", row.Reason)
		if from != store.Paused {
			_, err = e.Resume(t.Context(), id, false)
			require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
			require.ErrorContains(t, err, "is "+string(from)+" (because)")
			require.Contains(t, fault.HintOf(err), "roost resume --cold "+id)
		}
		row, err = e.Resume(t.Context(), id, true)
		require.NoError(t, err)
		require.Equal(t, store.Running, row.State)
		require.Equal(t, "booted from its disk", row.Reason)
		row, err = e.Resume(t.Context(), id, true)
		require.NoError(t, err, "resuming a running one is a success")
		require.Equal(t, store.Running, row.State)
	}
	require.Equal(t, 3, e.agent.Effects("ResumeSandbox"))
}

func TestFailedColdResume(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State, sb.Reason = hostv1.SandboxState_SANDBOX_STATE_LOST, "reboot" })
	_, err := e.Get(t.Context(), id)
	require.NoError(t, err)
	e.agent.Before(failing("ResumeSandbox", connect.NewError(connect.CodeFailedPrecondition, errors.New("disk is damaged"))))
	_, err = e.Resume(t.Context(), id, true)
	require.ErrorContains(t, err, "cold-resume sandbox "+id+": disk is damaged")
	require.Equal(t, store.Lost, e.row(id).State)
	require.Equal(t, "reboot", e.row(id).Reason)
	require.Empty(t, e.row(id).ClaimID)

	// The host has nothing of it at all.
	e.agent.Before(nil)
	e.agent.Forget(id)
	_, err = e.Resume(t.Context(), id, true)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.Equal(t, store.Failed, e.row(id).State)
	_, err = e.Resume(t.Context(), id, true)
	require.True(t, fault.Is(err, fault.NotFound), "a failed one that is not there: %v", err)
	require.Equal(t, store.Failed, e.row(id).State)
	require.NoError(t, e.Delete(t.Context(), id))
}

func TestLostAndSnapshottingRows(t *testing.T) {
	e := newEnv(t)
	id := e.create().ID
	e.agent.Change(id, func(sb *hostv1.Sandbox) {
		sb.State, sb.Reason = hostv1.SandboxState_SANDBOX_STATE_LOST, "the host went down"
	})
	row, err := e.Get(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, store.Lost, row.State)
	rows, _, err := e.List(t.Context(), store.Lost, 10, "")
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.NoError(t, e.Delete(t.Context(), id))
	require.Equal(t, "deleted on request after it was lost (the host went down)", e.row(id).Reason)

	seen := e.create()
	report := e.agent.Sandbox(seen.ID)
	report.State = hostv1.SandboxState_SANDBOX_STATE_SNAPSHOTTING
	_, changed := sandbox.Heal(seen, report, e.now())
	require.False(t, changed, "it runs")
	dead := seen.Copy()
	dead.ClaimID, dead.ClaimDeadline = "dead", store.At(e.now().Add(-time.Second))
	_, changed = sandbox.Heal(dead, report, e.now())
	require.False(t, changed, "the mark stands until the host is done")
	report.State = hostv1.SandboxState_SANDBOX_STATE_RUNNING
	next, changed := sandbox.Heal(dead, report, e.now())
	require.True(t, changed)
	require.Empty(t, next.ClaimID)
	paused := seen.Copy()
	paused.State = store.Paused
	report.State, report.Generation = hostv1.SandboxState_SANDBOX_STATE_SNAPSHOTTING, 9
	next, changed = sandbox.Heal(paused, report, e.now())
	require.True(t, changed)
	require.Equal(t, store.Running, next.State)
}
