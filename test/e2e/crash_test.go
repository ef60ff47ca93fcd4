package e2e

import (
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// crash is a step at which the agent is killed, or fails, within an operation.
type crash struct {
	// op is one of operations.
	op, point string
	// ends is what the operation's sandbox is afterwards. Before the commit what it was, after it
	// what it shall be.
	ends v1.SandboxState
	// vm: with virtual machines too. What the runtime left behind differs there; what a destroy
	// does, and what lies between two files of ours, does not.
	vm bool
	// apart: only where memory and disk are apart, which is with virtual machines.
	apart bool
	// last: between it and the commit before nothing can fail; it is killed at only.
	last bool
	// always: not in the soak alone.
	always bool
}

const (
	running = v1.Running
	paused  = v1.Paused
	gone    = v1.Deleted
)

// crashes are all steps of package sandbox (internal/host/sandbox/points.go), in each operation in
// which they differ.
var crashes = []crash{
	{op: "create", point: "sandbox.create.journaled", ends: gone, always: true},
	{op: "create", point: "sandbox.start.acquired", ends: gone},
	{op: "create", point: "sandbox.start.slot", ends: gone, always: true},
	{op: "create", point: "sandbox.start.launched", ends: gone, always: true, vm: true},
	{op: "create", point: "sandbox.start.recorded", ends: gone},
	{op: "create", point: "sandbox.start.handshake", ends: gone},
	{op: "create", point: "sandbox.start.greeted", ends: gone},
	{op: "create", point: "sandbox.start.thawed", ends: gone, always: true},
	{op: "create", point: "sandbox.settle.written", ends: running, last: true, always: true},

	{op: "create from", point: "sandbox.create.journaled", ends: gone},
	{op: "create from", point: "sandbox.from.linked", ends: gone, always: true},
	{op: "create from", point: "sandbox.from.published", ends: gone, always: true},
	{op: "create from", point: "sandbox.start.acquired", ends: gone},
	{op: "create from", point: "sandbox.start.slot", ends: gone},
	{op: "create from", point: "sandbox.start.launched", ends: gone, vm: true},
	{op: "create from", point: "sandbox.start.recorded", ends: gone},
	{op: "create from", point: "sandbox.start.handshake", ends: gone},
	{op: "create from", point: "sandbox.start.greeted", ends: gone},
	{op: "create from", point: "sandbox.start.thawed", ends: gone},
	{op: "create from", point: "sandbox.settle.written", ends: running, last: true, always: true},

	{op: "pause", point: "sandbox.pause.marked", ends: running},
	{op: "pause", point: "sandbox.pause.quiesced", ends: running, always: true},
	{op: "pause", point: "sandbox.pause.frozen", ends: running, always: true, vm: true},
	{op: "pause", point: "sandbox.pause.captured", ends: running, always: true, vm: true},
	{op: "pause", point: "sandbox.pause.manifest", ends: running, always: true, vm: true},
	{op: "pause", point: "sandbox.pause.renamed", ends: paused, always: true, vm: true},
	{op: "pause", point: "sandbox.pause.published", ends: paused, vm: true},
	{op: "pause", point: "sandbox.pause.stopped", ends: paused, always: true},
	{op: "pause", point: "sandbox.pause.written", ends: paused},
	{op: "pause", point: "sandbox.pause.released", ends: paused},

	{op: "pause of the disk", point: "sandbox.pause.marked", ends: running},
	{op: "pause of the disk", point: "sandbox.pause.quiesced", ends: running},
	{op: "pause of the disk", point: "sandbox.pause.frozen", ends: running},
	{op: "pause of the disk", point: "sandbox.pause.captured", ends: running, always: true, vm: true},
	{op: "pause of the disk", point: "sandbox.pause.manifest", ends: running},
	{op: "pause of the disk", point: "sandbox.pause.renamed", ends: paused, always: true, vm: true},
	{op: "pause of the disk", point: "sandbox.pause.published", ends: paused},
	{op: "pause of the disk", point: "sandbox.pause.stopped", ends: paused},
	{op: "pause of the disk", point: "sandbox.pause.written", ends: paused},
	{op: "pause of the disk", point: "sandbox.pause.released", ends: paused},

	{op: "resume", point: "sandbox.resume.marked", ends: paused},
	{op: "resume", point: "sandbox.start.acquired", ends: paused, always: true},
	{op: "resume", point: "sandbox.start.slot", ends: paused},
	{op: "resume", point: "sandbox.start.launched", ends: paused, always: true, vm: true},
	{op: "resume", point: "sandbox.start.recorded", ends: paused, vm: true},
	{op: "resume", point: "sandbox.start.handshake", ends: paused},
	{op: "resume", point: "sandbox.start.greeted", ends: paused, always: true},
	{op: "resume", point: "sandbox.start.thawed", ends: paused, vm: true},
	{op: "resume", point: "sandbox.resume.started", ends: paused, always: true},
	{op: "resume", point: "sandbox.settle.written", ends: running, last: true, always: true},

	{op: "rescue", point: "sandbox.rescue.salvaged", vm: true, apart: true, always: true},
	{op: "rescue", point: "sandbox.rescue.published", vm: true, apart: true, always: true},
	{op: "rescue", point: "sandbox.rescue.marked", vm: true, apart: true, last: true, always: true},
	{op: "rescue", point: "sandbox.start.slot"},
	{op: "rescue", point: "sandbox.start.launched", vm: true, always: true},
	{op: "rescue", point: "sandbox.start.greeted", vm: true},
	{op: "rescue", point: "sandbox.resume.started"},
	{op: "rescue", point: "sandbox.settle.written", ends: running, last: true, vm: true},

	{op: "snapshot", point: "sandbox.snapshot.marked", ends: running},
	{op: "snapshot", point: "sandbox.snapshot.quiesced", ends: running},
	{op: "snapshot", point: "sandbox.snapshot.frozen", ends: running, always: true, vm: true},
	{op: "snapshot", point: "sandbox.snapshot.captured", ends: running, always: true, vm: true},
	{op: "snapshot", point: "sandbox.snapshot.thawed", ends: running, vm: true},
	{op: "snapshot", point: "sandbox.snapshot.linked", ends: running, vm: true},
	{op: "snapshot", point: "sandbox.snapshot.manifest", ends: running, always: true},
	{op: "snapshot", point: "sandbox.snapshot.published", ends: running, always: true, vm: true},
	{op: "snapshot", point: "sandbox.snapshot.written", ends: running},
	{op: "snapshot of a paused one", point: "sandbox.snapshot.linked", ends: paused, always: true, vm: true},
	{op: "snapshot of a paused one", point: "sandbox.snapshot.manifest", ends: paused},
	{op: "snapshot of a paused one", point: "sandbox.snapshot.published", ends: paused, always: true},
	{op: "snapshot of a paused one", point: "sandbox.snapshot.written", ends: paused},
	{op: "snapshot rm", point: "sandbox.unsnap.renamed", ends: running, always: true},

	{op: "fork", point: "sandbox.snapshot.captured", ends: running},
	{op: "fork", point: "sandbox.snapshot.thawed", ends: running},
	{op: "fork", point: "sandbox.fork.captured", ends: running, always: true, vm: true},
	{op: "fork", point: "sandbox.create.journaled", ends: running},
	{op: "fork", point: "sandbox.from.linked", ends: running, always: true},
	{op: "fork", point: "sandbox.from.published", ends: running},
	{op: "fork", point: "sandbox.start.launched", ends: running, always: true, vm: true},
	{op: "fork", point: "sandbox.start.greeted", ends: running},
	{op: "fork", point: "sandbox.settle.written", ends: running, last: true},
	{op: "fork", point: "sandbox.fork.made", ends: running, always: true, vm: true},
	{op: "fork of a paused one", point: "sandbox.fork.captured", ends: paused},
	{op: "fork of a paused one", point: "sandbox.fork.made", ends: paused, vm: true},

	{op: "template", point: "sandbox.template.exported", ends: running, always: true},
	{op: "template", point: "sandbox.template.named", ends: running},
	{op: "template", point: "sandbox.snapshot.published", ends: running},

	{op: "fill", point: "sandbox.fill.marked", ends: running, last: true, always: true, vm: true},
	{op: "fill", point: "sandbox.fill.quiesced", ends: running, last: true},
	{op: "fill", point: "sandbox.fill.frozen", ends: running, last: true, always: true, vm: true},
	{op: "fill", point: "sandbox.fill.thawing", ends: running, last: true},
	{op: "fill", point: "sandbox.fill.thawed", ends: running, last: true, always: true},
	{op: "fill", point: "sandbox.fill.reserve", ends: running, last: true, always: true},
	{op: "pause when full", point: "sandbox.fill.released", ends: running, always: true},

	{op: "rm", point: "sandbox.destroy.marked", ends: gone, always: true},
	{op: "rm", point: "sandbox.destroy.stopped", ends: gone, always: true},
	{op: "rm", point: "sandbox.destroy.renamed", ends: gone, always: true},
	{op: "rm", point: "sandbox.destroy.released", ends: gone},
}

// TestTableIsWhole: a step that was given a name and no row fails here.
func TestTableIsWhole(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(roostBin, "failpoints").CombinedOutput()
	require.NoError(t, err, string(out))
	names := strings.Fields(string(out))
	require.NotEmpty(t, names)
	for _, name := range names {
		if strings.HasPrefix(name, "sandbox.") {
			require.True(t, slices.ContainsFunc(crashes, func(c crash) bool { return c.point == name }), "%s has no row in crashes", name)
		}
	}
	for _, c := range crashes {
		require.Contains(t, names, c.point, "the program has no such step")
		require.Contains(t, operations, c.op)
	}
}

// table runs the rows of each operation on one installation, one after the other.
type table struct {
	name  string
	trial func(*stage, crash)
	// errors: the step fails, instead of the agent being killed.
	errors bool
}

// TestKilledAt kills the agent at each step of each operation. Afterwards what was acknowledged is
// there, whole, once; nothing belongs to nobody; and what was interrupted works.
func TestKilledAt(t *testing.T) { table{name: "killed at a step", trial: (*stage).killedAt}.run(t) }

// TestFailedAt makes each step fail instead: the caller is told, the sandbox is usable, and the
// next try succeeds.
func TestFailedAt(t *testing.T) {
	table{name: "a step failed", trial: (*stage).failedAt, errors: true}.run(t)
}

func (tab table) run(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		for _, op := range slices.Sorted(maps.Keys(operations)) {
			rows := tab.rowsOf(op, k)
			if len(rows) == 0 {
				continue
			}
			t.Run(k.name+"/"+op, func(t *testing.T) {
				t.Parallel()
				s := trials.Begin(t, fmt.Sprintf("%s: %s", tab.name, op), k.name, len(rows), len(rows))
				newStage(t, k, op).rows(s.Exactly(len(rows)), rows, tab.trial)
			})
		}
	}
}

// rowsOf are an operation's rows for a runtime: in the soak all, else those that are always run, and
// with virtual machines, which are slow, errors in some operations only.
func (tab table) rowsOf(op string, k kind) []crash {
	few := !trials.Soaking()
	if few && tab.errors && k.virtual && op != "snapshot" && op != "rescue" {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(crashes), func(c crash) bool {
		return c.op != op || few && !c.always || tab.errors && c.last || k.virtual && !c.vm || !k.virtual && c.apart
	})
}
