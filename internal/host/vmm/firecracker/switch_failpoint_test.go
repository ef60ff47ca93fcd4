//go:build failpoints

package firecracker_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

// TestSwitchFails: a step that fails, and an agent that dies at it, leave the VM on one of both
// disks, under the name that saved state has.
func TestSwitchFails(t *testing.T) { //nolint:paralleltest // the failpoint is in the environment
	d := fakeDriver(t)
	for _, c := range []struct {
		point string
		done  bool
	}{
		{"firecracker.switch.node", false}, {"firecracker.switch.done", true}, {"firecracker.switch.named", true},
	} {
		cfg := fakeConfig(t)
		vm, g := boot(t, d, cfg)
		old, next := cfg.Drive[0], newDisk(t)
		require.NoError(t, vm.Pause(t.Context()))
		t.Setenv("ROOST_FAILPOINTS", c.point+"=error")
		err := vm.SwitchDisk(t.Context(), []vmm.Node{next})
		h := vm.Handle()
		vm.Detach() // as if the agent had died there
		t.Setenv("ROOST_FAILPOINTS", "")
		again, adoptErr := d.Adopt(t.Context(), h)
		require.NoError(t, adoptErr)
		killAtEnd(t, again)
		if c.done {
			require.NoError(t, err, c.point)
			writesTo(t, again, next)
		} else {
			require.Error(t, err, c.point)
			writesTo(t, again, old)
		}
		require.Equal(t, "/disk", g.Ask(t, "path"), c.point)
		saveState(t, again)
		require.NoError(t, again.SwitchDisk(t.Context(), []vmm.Node{next}))
		writesTo(t, again, next)
		require.NoError(t, again.Kill(t.Context()))
	}
}

// TestSwitchInterrupted is the contract's, with the real one.
func TestSwitchInterrupted(t *testing.T) { //nolint:paralleltest // the failpoint is in the environment
	needsFirecracker(t)
	vmmtest.Interrupted(t, newDriver, []string{"firecracker.switch.node", "firecracker.switch.done"})
}
