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
	verbCreate   verb = "create"
	verbPause    verb = "pause"
	verbResume   verb = "resume"
	verbCold     verb = "cold-resume"
	verbTimeout  verb = "set timeout of"
	verbSnapshot verb = "snapshot"
	verbFork     verb = "fork"
	verbTemplate verb = "make a template of"
	verbDelete   verb = "delete"
)

// transition says where a verb may begin, what it passes through and where it ends.
type transition struct {
	from []store.State
	via  store.State // empty: the state stays, the claim alone is the mark
	to   store.State // empty: as via
	// takeover says that the verb may take a row from an operation that runs.
	takeover bool
	// limit is the claim's deadline from its beginning.
	limit time.Duration
}

var anyState = []store.State{store.Creating, store.Running, store.Pausing, store.Paused,
	store.Resuming, store.Failed, store.Lost, store.Deleting}

// savable are the states from which a sandbox can be captured.
var savable = []store.State{store.Running, store.Paused}

// transitions is the whole state machine.
var transitions = map[verb]transition{
	verbCreate: {via: store.Creating, to: store.Running, limit: 5 * time.Minute},
	verbPause:  {from: []store.State{store.Running}, via: store.Pausing, to: store.Paused, limit: 5 * time.Minute},
	verbResume: {from: []store.State{store.Paused}, via: store.Resuming, to: store.Running, limit: 2 * time.Minute},
	verbCold: {from: []store.State{store.Paused, store.Failed, store.Lost}, via: store.Resuming, to: store.Running,
		limit: 5 * time.Minute},
	verbTimeout:  {from: savable, limit: 30 * time.Second},
	verbSnapshot: {from: savable, limit: 5 * time.Minute},
	verbFork:     {from: savable, limit: 10 * time.Minute},
	// A template's files are exported and its disk image built under the claim.
	verbTemplate: {from: savable, limit: 30 * time.Minute},
	verbDelete:   {from: anyState, via: store.Deleting, to: store.Deleted, takeover: true, limit: 2 * time.Minute},
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
		return wait, nil // a new timeout, a snapshot, a fork
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
	doing := string(row.State)
	if !transitional(row.State) {
		doing = "being changed by another request"
	}
	return fault.New(fault.Aborted, string(v), "",
		fmt.Sprintf("sandbox %s is %s", row.ID, doing)).WithHint("try again when that has ended")
}

// stateError says in which state a sandbox is and what leads out of it.
func stateError(row *store.Sandbox) error {
	err := fault.New(fault.FailedPrecondition, "", "",
		fmt.Sprintf("sandbox %s is %s%s", row.ID, row.State, because(row)))
	switch row.State {
	case store.Paused:
		return err.WithHint("resume it: roost resume " + row.ID)
	case store.Failed, store.Lost:
		return err.WithHint("start it from its disk: roost resume --cold " + row.ID + ", or delete it: roost rm " + row.ID)
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
