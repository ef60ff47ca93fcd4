package sandbox

import (
	"fmt"
	"slices"

	"github.com/roosthq/roost/internal/fault"
)

// State of a sandbox on this host.
type State string

// The states; see the package comment.
const (
	Creating State = "creating"
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Failed   State = "failed"
	// Lost: it ran when the host went down.
	Lost State = "lost"
	// Snapshotting: it runs, but for a moment.
	Snapshotting State = "snapshotting"
	Destroying   State = "destroying"
)

// transitions is the one table of what may follow what. Destroying may follow everything.
var transitions = map[State][]State{
	Creating:     {Running},
	Running:      {Pausing, Snapshotting, Failed, Lost},
	Snapshotting: {Running, Failed, Lost},
	Pausing:      {Paused, Running, Failed, Lost},
	Paused:       {Resuming},
	Resuming:     {Running, Paused, Failed, Lost},
	Failed:       {Paused, Resuming},
	Lost:         {Paused, Resuming},
}

// may says whether a sandbox in state from may go to state to.
func may(from, to State) bool {
	return to == Destroying || slices.Contains(transitions[from], to)
}

// need refuses an operation in a state other than want, saying what to do.
func need(id string, have, want State, op string) error {
	if have == want {
		return nil
	}
	f := fault.New(fault.FailedPrecondition, op, "sandbox "+id, "it is "+string(have))
	switch have {
	case Paused:
		return f.WithHint("resume it: roost resume " + id)
	case Failed, Lost:
		return f.WithHint(fmt.Sprintf("see why: `roost info %s`; start it from what was saved of it: `roost resume --cold %s`; or remove it: `roost rm %s`", id, id, id))
	case Running:
		return f
	default:
		return f.WithHint("it is changing; try again in a moment")
	}
}
