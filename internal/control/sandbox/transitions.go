package sandbox

import (
	"fmt"
	"slices"
	"time"

	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

// verb is a change that a user asks for.
type verb string

const (
	verbCreate  verb = "create"
	verbPause   verb = "pause"
	verbResume  verb = "resume"
	verbTimeout verb = "set timeout of"
	verbDelete  verb = "delete"
)

// transition says where a verb may begin, what it passes through and where it ends.
type transition struct {
	from []store.State
	via  store.State // empty: the state stays, only the claim is taken
	to   store.State // empty: as via
	// takeover says that the verb may take a row from an operation that runs.
	takeover bool
	// limit is the claim's deadline from its beginning.
	limit time.Duration
}

var anyState = []store.State{store.Creating, store.Running, store.Pausing, store.Paused,
	store.Resuming, store.Failed, store.Deleting}

// transitions is the whole state machine.
var transitions = map[verb]transition{
	verbCreate:  {via: store.Creating, to: store.Running, limit: 5 * time.Minute},
	verbPause:   {from: []store.State{store.Running}, via: store.Pausing, to: store.Paused, limit: 5 * time.Minute},
	verbResume:  {from: []store.State{store.Paused}, via: store.Resuming, to: store.Running, limit: 2 * time.Minute},
	verbTimeout: {from: []store.State{store.Running, store.Paused}, limit: 30 * time.Second},
	verbDelete:  {from: anyState, via: store.Deleting, to: store.Deleted, takeover: true, limit: 2 * time.Minute},
}

// decision is what a verb does with a row as it is now.
type decision int

const (
	refuse  decision = iota
	done             // the row is there already
	claim            // take it
	wait             // the same change runs: share its outcome
	consult          // its operation died: ask the host first
)

// judge decides; the error says why a verb is refused.
func judge(v verb, row *store.Sandbox, now time.Time) (decision, error) {
	t := transitions[v]
	claimed := row.Claimed(now)
	switch {
	case t.to != "" && row.State == t.to && !claimed:
		return done, nil
	case row.State == store.Deleted:
		return refuse, deletedError(v, row)
	case claimed && row.State == t.via:
		return wait, nil
	case claimed && !t.takeover && !transitional(row.State):
		return wait, nil // a timeout change: short
	case claimed && !t.takeover:
		return refuse, busyError(v, row)
	case slices.Contains(t.from, row.State):
		return claim, nil
	case transitional(row.State):
		return consult, nil
	default:
		return refuse, stateError(row)
	}
}

// transitional says that a state is passed through.
func transitional(s store.State) bool {
	switch s {
	case store.Creating, store.Pausing, store.Resuming, store.Deleting:
		return true
	default:
		return false
	}
}

func deletedError(v verb, row *store.Sandbox) error {
	return fault.New(fault.NotFound, string(v), "sandbox "+row.ID, "it was deleted"+because(row))
}

func busyError(v verb, row *store.Sandbox) error {
	return fault.New(fault.Aborted, string(v), "",
		fmt.Sprintf("sandbox %s is %s", row.ID, row.State)).WithHint("try again when that has ended")
}

// stateError says in which state a sandbox is and what leads out of it.
func stateError(row *store.Sandbox) error {
	err := fault.New(fault.FailedPrecondition, "", "",
		fmt.Sprintf("sandbox %s is %s%s", row.ID, row.State, because(row)))
	switch row.State {
	case store.Paused:
		return err.WithHint("resume it: roost resume " + row.ID)
	case store.Failed:
		return err.WithHint("delete it: roost rm " + row.ID)
	default:
		return err.WithHint("try again in a moment")
	}
}

func because(row *store.Sandbox) string {
	if row.Reason == "" {
		return ""
	}
	return " (" + row.Reason + ")"
}
