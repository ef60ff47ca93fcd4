package sandbox

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

func newPair(t *testing.T) *host {
	t.Helper()
	return newHost(t, sandboxtest.Sentry, sandboxtest.VM)
}

// createIn makes a sandbox in a runtime and returns its view and the steps that were told.
func (h *host) createIn(name, rt string, change func(*CreateRequest)) (View, []string, error) {
	h.t.Helper()
	req := request(name)
	req.Runtime = rt
	if change != nil {
		change(&req)
	}
	var steps []string
	v, err := h.m.Create(h.t.Context(), Operation{}, req, func(step, detail string) { steps = append(steps, step+" "+detail) })
	return v, steps, err
}

func TestASandboxKeepsItsRuntime(t *testing.T) {
	t.Parallel()
	h := newPair(t)
	sentry, vm := h.Runtimes[0], h.Runtimes[1]
	a, b := id("a"), id("b")
	best, steps, err := h.createIn(a, "", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"warm first start of base in sentry with 1 vCPU, 512 MB and a disk of 5120 MB: booting once and keeping its memory"}, steps)
	asked, _, err := h.createIn(b, "fake", nil)
	require.NoError(t, err)
	require.Equal(t, []any{"sentry", runtime.Sentry}, []any{best.Runtime, best.Isolation})
	require.Equal(t, []any{"fake", runtime.Emulated}, []any{asked.Runtime, asked.Isolation})
	for range 2 {
		require.Equal(t, []int{h.uid(a)}, sentry.Running())
		require.Equal(t, []int{h.uid(b)}, vm.Running())
		h.restart() // which adopts both
		for _, name := range []string{a, b} {
			_, err := h.get(name, "/notes")
			require.NoError(t, err)
			h.pause(name)
		}
		require.Empty(t, append(sentry.Running(), vm.Running()...))
		h.resume(b)
		h.resume(a)
	}
	h.destroy(a)
	h.destroy(b)
	h.empty()
}

func TestRuntimesThatCannotBeHad(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.absent = map[string]error{"gvisor": fault.New(fault.FailedPrecondition, "find", "runsc", "not there").WithHint("make runsc")}
	h.restart()
	_, _, err := h.createIn(id("a"), "nosuch", nil)
	require.Equal(t, fault.Invalid, fault.KindOf(err))
	require.ErrorContains(t, err, `runtime is "nosuch": this host has fake`)
	_, _, err = h.createIn(id("a"), "gvisor", nil)
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.ErrorContains(t, err, "runtime gvisor does not work on this host: find runsc: not there; this host has fake")
	require.Equal(t, "make runsc", fault.HintOf(err))
	h.runtimes = []runtime.Runtime{}
	h.restart()
	_, _, err = h.createIn(id("a"), "", nil)
	require.ErrorContains(t, err, "this host has none that works")
	require.Error(t, h.m.Warm(t.Context(), "base", runtime.Resources{VCPUs: 1, MemoryMB: 512, DiskSizeMB: 5120}))
	h.empty()
}

// Where a capture fixes the disk's size, each size has memory of its own; elsewhere one serves
// all.
func TestMemoryOfEachDiskSize(t *testing.T) {
	t.Parallel()
	h := newPair(t)
	for i, c := range []struct {
		runtime string
		diskMB  int
		steps   int
	}{
		{"sentry", 5120, 1},
		{"sentry", 0, 0},
		{"sentry", 6000, 1},
		{"sentry", 2048, 1},
		{"sentry", 6000, 0},
		{"fake", 5120, 1},
		{"fake", 6000, 0},
	} {
		name := id(string(rune('a' + i)))
		v, steps, err := h.createIn(name, c.runtime, func(r *CreateRequest) { r.Resources.DiskSizeMB = c.diskMB })
		require.NoError(t, err)
		require.Len(t, steps, c.steps, c)
		require.Equal(t, cmp.Or(c.diskMB, DefaultDiskSizeMB), v.Resources.DiskSizeMB)
	}
	_, steps, err := h.createIn(id("z"), "sentry", func(r *CreateRequest) { r.Cold = true })
	require.NoError(t, err)
	require.Equal(t, []string{"boot booting a kernel"}, steps)
	h.pause(id("z"))
	h.resume(id("z"))
}

// A host that has lost a runtime keeps its sandboxes, says in every answer what is wrong, and
// lets them be removed; when the runtime is back they go on.
func TestALostRuntime(t *testing.T) {
	t.Parallel()
	h := newPair(t)
	sentry, vm := h.Runtimes[0], h.Runtimes[1]
	runs, sleeps, goes, other := id("a"), id("b"), id("c"), id("d")
	for _, name := range []string{runs, sleeps, goes} {
		_, _, err := h.createIn(name, "sentry", nil)
		require.NoError(t, err)
	}
	_, _, err := h.createIn(other, "fake", nil)
	require.NoError(t, err)
	h.pause(sleeps)
	h.pause(goes)
	uid := h.uid(runs)

	h.runtimes = []runtime.Runtime{vm}
	h.absent = map[string]error{"sentry": errors.New("its program is gone")}
	h.restart()
	require.Equal(t, []int{uid}, sentry.Running(), "it runs on")
	for name, want := range map[string]State{runs: Running, sleeps: Paused} {
		v, err := h.m.Get(name)
		require.NoError(t, err)
		require.Equal(t, want, v.State)
		require.Equal(t, []any{"sentry", runtime.Sentry}, []any{v.Runtime, v.Isolation})
		require.Contains(t, v.Reason, "its program is gone")
		for op, err := range h.refusals(name) {
			require.Equal(t, fault.FailedPrecondition, fault.KindOf(err), op)
			require.ErrorContains(t, err, "its program is gone", op)
			require.Contains(t, fault.HintOf(err), "its data is kept", op)
		}
	}
	require.NoError(t, h.m.collect(t.Context()))
	require.NoError(t, h.m.pauseIdle(t.Context()))
	require.Equal(t, []int{uid}, sentry.Running())
	h.destroy(goes)
	_, err = h.get(other, "/notes")
	require.NoError(t, err)

	h.runtimes, h.absent = nil, nil
	h.restart()
	_, err = h.get(runs, "/notes")
	require.NoError(t, err)
	h.resume(sleeps)
	require.Equal(t, uid, h.uid(runs))
	for _, name := range []string{runs, sleeps, other} {
		h.destroy(name)
	}
	h.empty()
}

// refusals are the answers to everything that may be asked of a sandbox but its removal.
func (h *host) refusals(name string) map[string]error {
	ctx := h.t.Context()
	out := map[string]error{"reachable": h.m.Reachable(name, "reach")}
	_, out["pause"] = h.m.Pause(ctx, Operation{}, name, PauseOptions{Reason: "test"})
	_, out["resume"] = h.m.Resume(ctx, Operation{}, name, ResumeOptions{})
	_, out["timeout"] = h.m.SetIdleTimeout(ctx, Operation{}, name, 0)
	_, out["guest"] = h.m.Guest(name, "reach")
	_, out["console"] = h.m.Console(name)
	return out
}

// What was half done when its runtime was lost is undone where nothing can be lost by it, and
// waits where something may still run.
func TestALostRuntimeInTheMiddle(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*journal)
		want   State
	}{
		"creating":   {func(j *journal) { j.State = Creating }, ""},
		"destroying": {func(j *journal) { j.State = Destroying }, ""},
		"pausing":    {func(j *journal) { j.State, j.Pending = Pausing, j.Capture+1 }, Pausing},
		"published":  {func(j *journal) { j.State, j.Pending, j.Capture = Pausing, j.Capture, 0 }, Paused},
		"resuming":   {func(j *journal) { j.State = Resuming }, Paused},
		"rebooted":   {func(j *journal) { j.State, j.BootID = Running, "another" }, Lost},
		"reboot in a pause": {func(j *journal) {
			j.State, j.Pending, j.BootID = Pausing, j.Capture+1, "another"
		}, Lost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, sandboxtest.Sentry)
			a := id("a")
			h.create(a)
			h.pause(a)
			h.stop()
			dir := h.Data.Sandbox(a)
			j, err := readJournal(dir)
			require.NoError(t, err)
			c.change(j)
			require.NoError(t, j.save(dir, true))
			h.Connect()
			h.runtimes = []runtime.Runtime{}
			h.start()
			if c.want == "" {
				h.empty()
				return
			}
			require.Equal(t, c.want, h.state(a))
			require.NotEmpty(t, h.files("sandboxes/*/captures/1/manifest.json"), "its data is kept")
			h.destroy(a)
			h.empty()
		})
	}
}

func TestBuildsAreKeptWhileNeeded(t *testing.T) {
	t.Parallel()
	h := newHost(t, sandboxtest.Sentry, sandboxtest.VM)
	sentry := h.Runtimes[0]
	has := func(want ...string) {
		t.Helper()
		var names []string
		for _, path := range h.files("builds/sentry/*") {
			names = append(names, filepath.Base(path))
		}
		require.Equal(t, want, names)
	}
	upgrade := func(build string) {
		t.Helper()
		sentry.Upgrade(build)
		require.NoError(t, h.m.collect(t.Context()))
	}
	sentry.Upgrade("1")
	sleeps, runs := id("a"), id("b")
	h.create(sleeps)
	h.pause(sleeps)
	upgrade("2")
	has("1", "2")
	h.create(runs)
	require.NoError(t, os.RemoveAll(filepath.Join(h.Images.Dir(), "warm"))) // which need them too
	require.NoError(t, os.MkdirAll(filepath.Join(h.Images.Dir(), "warm"), 0o700))
	upgrade("3")
	has("1", "2", "3")
	h.resume(sleeps)
	h.pause(sleeps)
	upgrade("3")
	has("1", "2", "3")
	h.destroy(sleeps)
	upgrade("3")
	has("2", "3")
	// One that cannot be asked may need any: none goes.
	h.destroy(runs)
	sentry.Fail("needed", 1, errors.New("unreadable"))
	h.create(sleeps)
	require.Error(t, h.m.collect(t.Context()))
	has("2", "3")
	h.pause(sleeps)
	sentry.Fail("files", 1000, errors.New("unreadable")) // the collector asks more than once
	require.Error(t, h.m.collect(t.Context()))
	has("2", "3")
	sentry.On("files", nil)
	upgrade("3")
	has("3")
}

// A damaged journal does not say in what its sandbox ran; its captures do.
func TestADamagedJournalKeepsItsBuild(t *testing.T) {
	t.Parallel()
	h := newHost(t, sandboxtest.VM, sandboxtest.Sentry)
	sentry := h.Runtimes[1]
	sentry.Upgrade("1")
	a := id("a")
	_, _, err := h.createIn(a, "sentry", nil)
	require.NoError(t, err)
	h.pause(a)
	h.stop()
	require.NoError(t, os.WriteFile(h.Data.Sandbox(a).Journal(), []byte("{"), 0o600))
	require.NoError(t, os.RemoveAll(filepath.Join(h.Images.Dir(), "warm")))
	require.NoError(t, os.MkdirAll(filepath.Join(h.Images.Dir(), "warm"), 0o700))
	sentry.Upgrade("2")
	h.Connect()
	h.start()
	v, err := h.m.Get(a)
	require.NoError(t, err)
	require.Equal(t, []any{Paused, "sentry", runtime.Sentry}, []any{v.State, v.Runtime, v.Isolation})
	require.Len(t, h.files("builds/sentry/*"), 2)
	h.destroy(a)
	require.NoError(t, h.m.collect(context.WithoutCancel(t.Context())))
	require.Len(t, h.files("builds/sentry/*"), 1)
}
