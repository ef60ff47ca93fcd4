package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// grouped is a runtime that makes cgroups.
type grouped struct {
	*sandboxtest.Runtime
	mu     sync.Mutex
	groups []runtime.Held
}

func (g *grouped) Held(context.Context) ([]runtime.Held, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.groups), nil
}

func (g *grouped) GiveBack(_ context.Context, gone runtime.Held) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.groups = slices.DeleteFunc(g.groups, func(is runtime.Held) bool { return is == gone })
	return nil
}

// leaks are what Leaks finds, as kind and name.
func (h *host) leaks(fix bool) (names []string, all []Leak) {
	h.t.Helper()
	all, err := h.m.Leaks(h.t.Context(), fix)
	require.NoError(h.t, err)
	for _, l := range all {
		names = append(names, l.Kind+" "+l.Name)
	}
	return names, all
}

func (h *host) noLeaks() {
	h.t.Helper()
	names, all := h.leaks(false)
	require.Empty(h.t, names, "%+v", all)
}

// What is in use, and what is in the making, is no leak.
func TestWhatIsInUseIsNoLeak(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		running, paused, failed, pausing, making := id("a"), id("b"), id("c"), id("d"), id("e")
		for _, name := range []string{running, paused, failed, pausing} {
			h.create(name)
		}
		for range 3 {
			h.pause(paused)
			h.resume(paused)
		}
		h.pause(paused)
		h.fails(failed)
		inPause, pauseAt, endPause := arrival()
		h.Runtime.On("capture", inPause)
		inStart, startAt, endStart := arrival()
		h.Runtime.On("restore", inStart)
		errs := make(chan error, 2)
		go func() {
			_, err := h.m.Pause(t.Context(), Operation{}, pausing, PauseOptions{})
			errs <- err
		}()
		go func() {
			_, err := h.m.Create(t.Context(), Operation{}, request(making), nil)
			errs <- err
		}()
		wait(t, pauseAt)
		wait(t, startAt)
		h.noLeaks()
		names, _ := h.leaks(true)
		require.Empty(t, names)
		close(endPause)
		close(endStart)
		require.NoError(t, wait(t, errs))
		require.NoError(t, wait(t, errs))
		h.noLeaks()
		for _, name := range []string{running, making} {
			h.answers(name)
		}
		for _, name := range []string{paused, pausing} {
			h.resume(name)
		}
	})
}

// plant makes one of everything that may be left, and returns it as Leaks names it.
func plant(t *testing.T, h *host, g *grouped, paused, failed string) (names []string, pid int) {
	t.Helper()
	write := func(path string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, make([]byte, 8192), 0o600))
	}
	dir := h.Data.Sandbox(paused)
	write(filepath.Join(dir.Disk(), "merged-77"))
	write(filepath.Join(dir.Disk(), "live-78"))
	write(filepath.Join(dir.Captures(), "9", "memory.layer"))
	write(filepath.Join(dir.CaptureStage(8), "memory.layer"))
	write(filepath.Join(h.Data.Sandbox(failed).CaptureStage(2), "memory.layer"))
	write(filepath.Join(h.Data.Trash(), "x-1", "journal.json"))
	write(filepath.Join(h.Data.Trash(), "boot-1", "boot.json"))
	write(filepath.Join(h.Data.SnapshotStage(id("s")), "memory.layer"))
	write(filepath.Join(h.Data.Snapshot(id("t")), "memory.layer"))
	write(filepath.Join(h.Data.Sandbox(id("u")).Run(), "vm.sock"))
	uid := h.UIDs.UID(100)
	g.mu.Lock()
	g.groups = append(g.groups, runtime.Held{Kind: "cgroup", Name: fmt.Sprintf("%s-%d", id("v"), uid), ID: id("v"), UID: uid})
	g.mu.Unlock()
	stray, err := h.Network.Acquire(t.Context(), "stray", network.Tap)
	require.NoError(t, err)
	h.stop() // and the next agent does not know that slot
	pid = sleeper(t, uid).Process.Pid
	return []string{
		"cgroup " + fmt.Sprintf("%s-%d", id("v"), uid),
		"disk .trash/x-1",
		"disk " + paused + "/captures/9/memory.layer",
		"disk " + paused + "/disk/live-78",
		"disk " + paused + "/disk/merged-77",
		fmt.Sprintf("network slot %d", stray.Index()),
		fmt.Sprintf("process pid %d", pid),
		"sandbox " + id("u"),
		"snapshot " + id("t"),
		"stage .snapshots/.tmp-" + id("s"),
		"stage " + paused + "/captures/.tmp-8",
		"stage " + failed + "/captures/.tmp-2",
		"template .trash/boot-1",
	}, pid
}

// adoptQuietly starts an agent that adopts without collecting, so that what is left is still there.
func (h *host) adoptQuietly() {
	h.t.Helper()
	h.m = New(h.m.cfg)
	h.m.cfg.Network = h.Network
	_, _, err := h.m.Begin(h.t.Context())
	require.NoError(h.t, err)
	for _, path := range h.files("sandboxes/[a-z]*") {
		name := filepath.Base(path)
		if _, err := os.Stat(h.Data.Sandbox(name).Journal()); err != nil {
			continue
		}
		s, _, err := h.m.load(name)
		require.NoError(h.t, err)
		if s.journal().State == Running {
			require.NoError(h.t, h.m.adopt(h.t.Context(), s))
		}
	}
}

func TestLeaks(t *testing.T) {
	t.Parallel()
	h := &host{Host: sandboxtest.New(t), t: t}
	g := &grouped{Runtime: h.Runtime}
	h.runtimes = []runtime.Runtime{g}
	h.start()
	t.Cleanup(func() { h.m.Stop() })
	running, paused, failed := id("a"), id("b"), id("c")
	for _, name := range []string{running, paused, failed} {
		h.create(name)
	}
	h.pause(paused)
	h.fails(failed)
	mine := h.sandbox(running).journal()
	keptGroup := runtime.Held{Kind: "cgroup", Name: "mine", ID: running, UID: mine.UID}
	// Of the uid, but of another sandbox before; and of another installation's uids.
	g.groups = []runtime.Held{keptGroup, {Kind: "cgroup", Name: "before", ID: id("z"), UID: mine.UID}, {Kind: "cgroup", Name: "other", ID: id("z"), UID: foreignUID}}
	want, pid := plant(t, h, g, paused, failed)
	want = append(want, "cgroup before")
	slices.Sort(want)

	// Not ours, however alike.
	foreign := []string{
		filepath.Join(h.Data.Sandboxes(), strings.Repeat("a", 19)), filepath.Join(h.Data.Sandboxes(), strings.Repeat("a", 21)),
		filepath.Join(h.Data.Sandboxes(), "lost+found"), filepath.Join(h.Data.Snapshots(), "lost+found"),
	}
	for _, path := range foreign {
		require.NoError(t, os.MkdirAll(path, 0o700))
	}
	neighbour := sleeper(t, foreignUID)
	other := h.other()
	h.Connect()
	h.adoptQuietly()

	names, all := h.leaks(false)
	slices.Sort(names)
	require.Equal(t, want, names)
	for _, l := range all {
		require.NotEmpty(t, l.Detail)
		require.False(t, l.Removed)
		require.Empty(t, l.Error)
		if slices.Contains([]string{"disk", "stage", "snapshot", "template"}, l.Kind) {
			require.GreaterOrEqual(t, l.Bytes, int64(8192), l.Name)
		}
	}
	again, _ := h.leaks(false)
	slices.Sort(again)
	require.Equal(t, want, again, "looking changes nothing")
	require.NoError(t, syscall.Kill(pid, 0))

	_, all = h.leaks(true)
	require.Len(t, all, len(want))
	for _, l := range all {
		require.True(t, l.Removed, "%+v", l)
	}
	h.noLeaks()
	require.Equal(t, []runtime.Held{keptGroup, {Kind: "cgroup", Name: "other", ID: id("z"), UID: foreignUID}}, g.groups)
	require.NoError(t, neighbour.Process.Signal(syscall.Signal(0)))
	for _, path := range foreign {
		require.DirExists(t, path)
		require.NoError(t, os.Remove(path))
	}
	other()
	h.answers(running)
	h.resume(paused)
	h.resumeCold(failed)
}

// other is another installation on the host whose id is as like this one's as can be, with a slot;
// the returned function proves that the slot is untouched.
func (h *host) other() (check func()) {
	h.t.Helper()
	last := "0"
	if strings.HasSuffix(h.Installation, last) {
		last = "1"
	}
	name := h.Installation[:3] + last
	dir := h.t.TempDir()
	n, err := network.New(network.Options{
		Installation: name, StateDir: dir, PoolSize: -1, HostNS: h.HostNS(), Resolvers: []string{"192.0.2.53"}, Logger: h.Log,
	})
	require.NoError(h.t, err)
	require.NoError(h.t, n.Start(h.t.Context()))
	s, err := n.Acquire(h.t.Context(), "stray", network.Tap)
	require.NoError(h.t, err)
	h.t.Cleanup(func() { require.NoError(h.t, n.Uninstall(context.WithoutCancel(h.t.Context()))) })
	return func() {
		require.FileExists(h.t, fmt.Sprintf("/run/netns/roost-%s-%d", name, s.Index()))
		require.NoError(h.t, n.Release(h.t.Context(), s))
	}
}

// What journals name and is not there is told, and not made up for by deleting the rest.
func TestWhatIsMissingIsTold(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b, c := id("a"), id("b"), id("c")
		for _, name := range []string{a, b, c} {
			h.create(name)
		}
		h.pause(b)
		h.pause(c)
		require.NoError(t, os.Remove(filepath.Join(h.Data.Sandbox(b).Capture(1), "memory.layer")))
		manifest := filepath.Join(h.Data.Sandbox(c).Capture(1), "manifest.json")
		raw, err := os.ReadFile(manifest)
		require.NoError(t, err)
		raw[len(raw)/2] ^= 1
		require.NoError(t, os.WriteFile(manifest, raw, 0o600))
		slot := h.sandbox(a).journal().Slot
		h.edit(a, func(j *journal) { j.Slot = 500 })
		h.sandbox(a).remember(func(j *journal) { j.Slot = 500 })
		_, snap, err := h.m.CreateSnapshot(t.Context(), Operation{}, c, id("s"))
		require.Error(t, err, "%v", snap)
		require.NoError(t, os.MkdirAll(h.Data.Snapshot(id("s")), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(h.Data.Snapshot(id("s")), "manifest.json"), raw, 0o600))
		want := []string{"network slot 500", "sandbox " + b, "sandbox " + c, "snapshot " + id("s")}
		soon(t, "nobody is at them any more", func() bool { names, _ := h.leaks(false); return slices.Equal(want, names) })
		for _, fix := range []bool{false, true} {
			names, all := h.leaks(fix)
			require.Equal(t, want, names)
			for _, l := range all {
				require.False(t, l.Removed)
				require.Equal(t, fix, l.Error != "", "%+v", l)
			}
		}
		require.FileExists(t, manifest)
		h.sandbox(a).remember(func(j *journal) { j.Slot = slot })
		h.answers(a)
	})
}

// A journal that names a pid which is another process's by now is no claim to that.
func TestARecycledPIDIsNotOurs(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		h.create(a)
		h.create(b)
		innocent := sleeper(t, foreignUID)
		uid := h.uid(a)
		h.stop()
		h.Runtime.Kill(uid, "crash")
		record, err := json.Marshal(map[string]any{"uid": uid, "pid": innocent.Process.Pid})
		require.NoError(t, err)
		h.edit(a, func(j *journal) { j.Instance = record })
		h.Connect()
		h.start()
		require.Equal(t, Failed, h.state(a))
		names, _ := h.leaks(true)
		require.Empty(t, names)
		h.destroy(a)
		require.NoError(t, h.m.collect(t.Context()))
		require.NoError(t, innocent.Process.Signal(syscall.Signal(0)))
		h.answers(b)
	})
}

// What cannot be removed says why.
func TestALeakThatStays(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.create(id("a"))
	h.pause(id("a"))
	r := &leakReport{fix: true}
	r.add(Leak{Kind: "disk", Name: "x"}, func() error { return errors.New("it is held") })
	require.Equal(t, []Leak{{Kind: "disk", Name: "x", Error: "it is held"}}, r.leaks)
	h.noLeaks()
}

// A device is a leak unless it stands for a file of a sandbox that runs; while anything is being
// started none is.
func TestLeaksOfDevices(t *testing.T) {
	t.Parallel()
	h := &host{Host: sandboxtest.New(t), t: t}
	g := &grouped{Runtime: h.Runtime}
	h.runtimes = []runtime.Runtime{g}
	h.start()
	t.Cleanup(func() { h.m.Stop() })
	running, paused, starting := id("a"), id("b"), id("c")
	device := func(name, path string) runtime.Held {
		return runtime.Held{Kind: "device-mapper device", Name: name, Path: path}
	}
	inDisk := func(name string) string {
		path := filepath.Join(h.Data.Sandbox(name).Disk(), "own.cow")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		return path
	}
	h.create(running)
	h.create(paused)
	h.pause(paused)
	mine := device("running", inDisk(running))
	g.groups = []runtime.Held{
		mine, device("paused", inDisk(paused)), device("nameless", ""), device("gone", filepath.Join(t.TempDir(), "gone")),
		device("elsewhere", os.Args[0]),
	}

	in, at, end := arrival()
	h.Runtime.On("restore", in)
	errs := make(chan error, 1)
	go func() {
		_, err := h.m.Create(t.Context(), Operation{}, request(starting), nil)
		errs <- err
	}()
	wait(t, at)
	names, _ := h.leaks(true)
	require.NotContains(t, strings.Join(names, "\n"), "device-mapper", "while one starts")
	close(end)
	require.NoError(t, wait(t, errs))

	names, _ = h.leaks(false)
	for _, name := range []string{"paused", "nameless", "gone", "elsewhere"} {
		require.Contains(t, names, "device-mapper device "+name)
	}
	require.NotContains(t, names, "device-mapper device running")
	h.leaks(true)
	require.Equal(t, []runtime.Held{mine}, g.groups)
	h.noLeaks()
}
