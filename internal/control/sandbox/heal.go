package sandbox

import (
	"context"
	"time"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
)

// hostStates are the host's states that a row may follow; the others are passed through.
var hostStates = map[hostv1.SandboxState]store.State{
	hostv1.SandboxState_SANDBOX_STATE_RUNNING: store.Running,
	hostv1.SandboxState_SANDBOX_STATE_PAUSED:  store.Paused,
	hostv1.SandboxState_SANDBOX_STATE_FAILED:  store.Failed,
	hostv1.SandboxState_SANDBOX_STATE_LOST:    store.Lost,
}

// follows is the state that a row takes of a report. A sandbox of which a snapshot is taken
// runs, but only a row that nobody has marked for it follows: the mark of an operation
// whose end is unknown stands until the host is done.
func follows(row *store.Sandbox, report *hostv1.Sandbox) (store.State, bool) {
	if report.GetState() == hostv1.SandboxState_SANDBOX_STATE_SNAPSHOTTING {
		return store.Running, row.ClaimID == ""
	}
	state, stable := hostStates[report.GetState()]
	return state, stable
}

// Heal says how a row has to change to agree with what its host reports (nil: the host
// knows no such sandbox). It decides only; the caller swaps.
//
// A claimed row, a deleting row, a host that is in the middle of something and a report of
// an older generation change nothing.
func Heal(row *store.Sandbox, report *hostv1.Sandbox, now time.Time) (*store.Sandbox, bool) {
	if row.Claimed(now) || row.State == store.Deleting || row.State == store.Deleted {
		return nil, false
	}
	if report == nil {
		return vanished(row, now)
	}
	state, stable := follows(row, report)
	if !stable || report.GetGeneration() < uint64(row.Generation) {
		return nil, false
	}
	same := state == row.State && report.GetReason() == row.Reason && report.GetGeneration() == uint64(row.Generation)
	if same && row.ClaimID == "" {
		return nil, false
	}
	next := row.Copy()
	takeReport(next, report)
	next.State = state
	return next, true
}

// vanished is what becomes of a row that its host does not know.
func vanished(row *store.Sandbox, now time.Time) (*store.Sandbox, bool) {
	if row.State == store.Failed {
		return nil, false
	}
	next := row.Copy()
	next.ClaimID, next.ClaimDeadline = "", 0
	if row.State == store.Creating {
		// It never came to be, so there is nothing for its owner to look at.
		next.State, next.DeletedAt, next.Reason = store.Deleted, store.At(now), "the create was interrupted"
		return next, true
	}
	next.State, next.Reason = store.Failed, "the host no longer knows it"
	next.MemoryUsedBytes, next.DiskUsedBytes = 0, 0
	return next, true
}

// takeReport lets a row follow its host and ends its claim. Without a report the reconciler
// brings what has changed.
func takeReport(row *store.Sandbox, r *hostv1.Sandbox) {
	row.ClaimID, row.ClaimDeadline = "", 0
	if r == nil {
		return
	}
	if state, stable := hostStates[r.GetState()]; stable {
		row.State = state
	}
	row.Reason = r.GetReason()
	takeFigures(row, r)
}

// takeFigures takes what the host knows better than the row.
func takeFigures(row *store.Sandbox, r *hostv1.Sandbox) {
	row.Generation = max(row.Generation, int64(r.GetGeneration()))
	row.DiskUsedBytes, row.MemoryUsedBytes = r.GetDiskBytes(), r.GetMemoryBytes()
	if v := r.GetIsolation(); v != "" {
		row.Isolation = v
	}
	if v := r.GetRuntime(); v != "" {
		row.Runtime = v
	}
	if r.GetActiveAt().IsValid() {
		row.ActiveAt = store.At(r.GetActiveAt().AsTime())
	}
	if r.GetIdleTimeout() != nil {
		row.IdleTimeoutS = int(r.GetIdleTimeout().AsDuration() / time.Second)
	}
	if len(r.GetPhases()) > 0 {
		row.Phases = host.Phases(r.GetPhases())
	}
}

// Figures gives a row the host's present figures, and says whether any differs. Only an
// unclaimed row of the same generation takes them.
func Figures(row *store.Sandbox, report *hostv1.Sandbox, now time.Time) (*store.Sandbox, bool) {
	if row.Claimed(now) || report.GetGeneration() != uint64(row.Generation) {
		return nil, false
	}
	next := row.Copy()
	takeFigures(next, report)
	same := next.DiskUsedBytes == row.DiskUsedBytes && next.MemoryUsedBytes == row.MemoryUsedBytes &&
		next.ActiveAt == row.ActiveAt && next.IdleTimeoutS == row.IdleTimeoutS
	return next, !same
}

// Apply swaps rows that Heal or Figures changed, in one transaction, and wakes who waits.
func (s *Service) Apply(ctx context.Context, swaps []store.Swap) (int, error) {
	if len(swaps) == 0 {
		return 0, nil
	}
	n, err := s.store.SwapAll(ctx, swaps)
	for _, sw := range swaps {
		s.settled.notify(sw.Seen.ID)
	}
	return n, err
}
