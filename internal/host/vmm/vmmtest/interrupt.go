package vmmtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
)

// Interrupted switches the disk of one VM again and again: at each of a driver's failpoints the
// agent is killed, then the step fails. A switch that did not happen leaves nothing in the VMM,
// and the next one works. The last of the points is after the switch. The environment is shared:
// the caller's test must not be parallel.
func Interrupted(t *testing.T, newDriver func(t testing.TB) vmm.Driver, points []string) {
	s := newSuite(t, newDriver, Build(t))
	m := s.newMachine(t)
	m.cfg.Drive = s.overlay(t, m.cfg.Drive, diskMB)
	i := &interrupted{suite: s, T: t, vm: s.boot(t, m), drive: m.cfg.Drive}
	i.guest = m.reach(t)
	i.write()
	for n, point := range points {
		done := n == len(points)-1
		i.killed(point, done)
		i.failed(point, done)
	}
}

type interrupted struct {
	*suite
	*testing.T
	vm    vmm.VM
	guest *guest
	// drive is what the guest writes to.
	drive []vmm.Node
	block int64
}

// killed: the agent dies in the switch of a paused VM; another adopts it.
func (i *interrupted) killed(point string, done bool) {
	next := i.pauseFor(point)
	h := i.vm.Handle()
	i.vm.Detach()
	i.dieAt(point, job{Adopt: &h, Drive: next})
	vm, err := i.driver(i).Adopt(i.Context(), h)
	require.NoError(i, err, point)
	killAtEnd(i, vm)
	i.vm = vm
	i.goOn(point+"=kill", next, done)
}

// failed: the step fails; the same agent goes on.
func (i *interrupted) failed(point string, done bool) {
	next := i.pauseFor(point)
	i.Setenv(failpoints, point+"=error")
	err := i.vm.SwitchDisk(i.Context(), next)
	i.Setenv(failpoints, "")
	if done {
		require.NoError(i, err, "after the switch nothing fails it")
	} else {
		require.ErrorContains(i, err, point)
	}
	i.goOn(point+"=error", next, done)
}

const failpoints = "ROOST_FAILPOINTS"

func (i *interrupted) pauseFor(point string) []vmm.Node {
	i.Helper()
	require.NoError(i, i.vm.Pause(i.Context()), point)
	return i.overlay(i, i.drive, diskMB)
}

func (i *interrupted) dieAt(point string, j job) {
	i.Helper()
	raw, err := json.Marshal(j)
	require.NoError(i, err)
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), agentConfig+"="+string(raw), failpoints+"="+point+"=kill")
	agent.Stderr = os.Stderr
	var exit *exec.ExitError
	require.True(i, errors.As(agent.Run(), &exit), "the agent was to die at %s", point)
	require.Equal(i, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), point)
}

// goOn checks that the VM is on next where done, else on the drive that it had, with nothing of
// next in its VMM; that the guest's writes go there; and that the switch can be made again.
func (i *interrupted) goOn(what string, next []vmm.Node, done bool) {
	i.Helper()
	before := i.drive
	if done {
		i.drive = next
	}
	i.writesTo(what, i.drive)
	require.NoError(i, i.vm.Resume(i.Context()), what)
	i.write()
	if !done {
		require.Zero(i, openFDs(i, i.vm.Handle().PID, top(next), 0o600), "%s: of the switch that was not", what)
	}
	if !done && !i.caps.LiveDiskSwitch { // what it wrote meanwhile is in no copy
		require.NoError(i, i.vm.Pause(i.Context()), what)
		next = i.overlay(i, i.drive, diskMB)
	}
	for range 2 { // again: it has it
		require.NoError(i, i.vm.SwitchDisk(i.Context(), next), what)
		i.drive = next
		i.writesTo(what, next)
	}
	require.NoError(i, i.vm.Resume(i.Context()), what)
	require.Zero(i, writableFDs(i, i.vm.Handle().PID, top(before)), "%s: the VMM can still write to a sealed layer", what)
	hash := fileHash(i, top(before))
	i.write()
	require.Equal(i, hash, fileHash(i, top(before)), "%s: a sealed layer was written", what)
}

func top(drive []vmm.Node) string { return drive[len(drive)-1].Path }

// writesTo checks which file the VM says that it writes to.
func (i *interrupted) writesTo(what string, drive []vmm.Node) {
	i.Helper()
	want, err := os.Stat(top(drive))
	require.NoError(i, err)
	got, err := i.vm.WritesTo(i.Context())
	require.NoError(i, err, what)
	require.True(i, os.SameFile(want, got), what)
}

// write lets the guest write a block more; it is in the drive, and so are those before it.
func (i *interrupted) write() {
	i.Helper()
	i.block++
	i.guest.ask(i, fmt.Sprintf("write %d n%d", i.block, i.block))
	flat := flatten(i, i.drive)
	for n := int64(1); n <= i.block; n++ {
		require.Equal(i, fmt.Sprintf("n%d", n), blockOf(i, flat, n))
	}
}
