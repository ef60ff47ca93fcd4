package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// edit changes a journal while no agent runs.
func (h *host) edit(name string, change func(*journal)) {
	h.t.Helper()
	dir := h.Data.Sandbox(name)
	j, err := readJournal(dir)
	require.NoError(h.t, err)
	change(j)
	require.NoError(h.t, j.save(dir, false))
}

func TestRestartAdopts(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		h.create(a)
		h.create(b)
		h.Runtime.Note(h.uid(a), "kept")
		h.pause(b)
		for range 3 {
			h.restart()
			h.answers(a)
			text, err := h.get(a, "/notes")
			require.NoError(t, err)
			require.Equal(t, "kept", text)
			require.EqualValues(t, 1, h.sandbox(a).journal().Generation)
			require.Equal(t, Paused, h.state(b))
		}
		h.resume(b)
		h.destroy(a)
		h.destroy(b)
		h.empty()
	})
}

// A busy machine is slow to answer; that is no reason to end a sandbox.
func TestAdoptionIsTriedAgain(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		h.create(id("a"))
		h.stop()
		h.Runtime.Fail("adopt", 1, fault.New(fault.DeadlineExceeded, "ask", "vm", "no answer"))
		h.Connect()
		h.start()
		h.answers(id("a"))
	})
}

func TestDeathWhileNoAgentRuns(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		uid := h.uid(a)
		h.stop()
		h.Runtime.Kill(uid, "killed by signal 9")
		h.Connect()
		h.start()
		v, err := h.m.Get(a)
		require.NoError(t, err)
		require.Equal(t, Failed, v.State)
		require.Contains(t, v.Reason, "while the agent was down")
		require.EqualValues(t, 2, v.Generation)
		require.Empty(t, h.Slots())
		h.destroy(a)
		h.empty()
	})
}

// A VM whose slot is gone cannot be reached any more: it is ended and the sandbox failed.
func TestSlotIsGone(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.stop()
		h.Connect()
		require.NoError(t, h.Network.Collect(t.Context(), nil))
		h.start()
		require.Equal(t, Failed, h.state(a))
		require.Empty(t, h.Runtime.Running())
	})
}

func TestHostReboot(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		running, paused, half := id("a"), id("b"), id("c")
		for _, name := range []string{running, paused, half} {
			h.create(name)
			h.Runtime.Note(h.uid(name), "kept")
		}
		h.pause(paused)
		h.stop()
		for _, uid := range h.Runtime.Running() {
			h.Runtime.Kill(uid, "reboot")
		}
		for _, name := range []string{running, paused, half} {
			h.edit(name, func(j *journal) { j.BootID = "another" })
		}
		h.edit(half, func(j *journal) { j.State, j.Pending = Pausing, 1 })
		h.Connect()
		require.NoError(t, h.Network.Collect(t.Context(), nil))
		h.start()
		v, err := h.m.Get(running)
		require.NoError(t, err)
		require.Equal(t, Lost, v.State)
		require.Contains(t, v.Reason, "the host was rebooted at ")
		require.Greater(t, v.Generation, uint64(2))
		require.Equal(t, Lost, h.state(half))
		require.Equal(t, Paused, h.state(paused))
		require.EqualValues(t, 4, h.sandbox(paused).journal().Generation, "above what a lost journal can have said")
		h.resume(paused)
		text, err := h.get(paused, "/notes")
		require.NoError(t, err)
		require.Equal(t, "kept", text)
		h.restart()
		require.EqualValues(t, 5, h.sandbox(paused).journal().Generation, "a restart is no reboot")
		require.Equal(t, Running, h.state(paused))
	})
}

// What is half done when the agent dies is finished or undone by the next one.
func TestHalfDone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*host)
		change func(*host, *journal)
		want   State
	}{
		"creating, nothing made": {func(h *host) { h.create(id("a")); h.pause(id("a")) },
			func(_ *host, j *journal) { j.State = Creating }, ""},
		"creating, VM runs, not written down": {func(h *host) { h.create(id("a")) },
			func(_ *host, j *journal) { j.State, j.Instance = Creating, nil }, ""},
		"destroying": {func(h *host) { h.create(id("a")) },
			func(_ *host, j *journal) { j.State = Destroying }, ""},
		"resuming, VM runs, not written down": {func(h *host) { h.create(id("a")); h.pause(id("a")); h.resume(id("a")) },
			func(_ *host, j *journal) { j.State, j.Instance = Resuming, nil }, Paused},
		"resuming, slot not written down": {func(h *host) { h.create(id("a")); h.pause(id("a")) },
			func(_ *host, j *journal) { j.State = Resuming }, Paused},
		"pausing, nothing captured": {func(h *host) { h.create(id("a")) },
			func(_ *host, j *journal) { j.State, j.Pending = Pausing, 1 }, Running},
		"pausing, half captured": {func(h *host) { h.create(id("a")) }, func(h *host, j *journal) {
			j.State, j.Pending = Pausing, 1
			require.NoError(h.t, os.Mkdir(h.Data.Sandbox(j.ID).CaptureStage(1), 0o700))
		}, Running},
		"pausing, captured, VM is gone": {func(h *host) { h.create(id("a")); h.pause(id("a")) }, func(_ *host, j *journal) {
			j.State, j.Pending, j.Capture, j.DiskIndex = Pausing, 1, 0, 0
		}, Paused},
	} {
		t.Run(name, func(t *testing.T) {
			onEach(t, func(t *testing.T, h *host) {
				a := id("a")
				c.before(h)
				h.stop()
				h.edit(a, func(j *journal) { c.change(h, j) })
				h.Connect()
				h.start()
				if c.want == "" {
					h.empty()
					return
				}
				require.Equal(t, c.want, h.state(a))
				require.Empty(t, h.files("sandboxes/*/captures/.tmp*"))
				if c.want == Paused {
					require.Empty(t, h.Slots())
					require.Empty(t, h.Runtime.Running())
					h.resume(a)
				}
				h.answers(a)
				h.pause(a)
				h.destroy(a)
				h.empty()
			})
		})
	}
}

// An agent that was killed after the commit of a pause, with the VM still there: the capture
// counts, the VM ends.
func TestCommittedPauseIsCompletedByTheNextAgent(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.Error(t, err)
		h.Runtime.Note(h.uid(a), "after the commit")
		h.restart()
		require.Equal(t, Paused, h.state(a))
		require.Empty(t, h.Runtime.Running())
		require.Empty(t, h.Slots())
		h.resume(a)
		text, err := h.get(a, "/notes")
		require.NoError(t, err)
		require.Equal(t, "kept", text)
	})
}

// A published capture that cannot be read is no reason to give up a sandbox that still runs.
func TestUnreadableCaptureOfAPauseThatRunsOn(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{Reason: "test"})
		require.Error(t, err)
		h.stop()
		require.NoError(t, os.WriteFile(filepath.Join(h.Data.Sandbox(a).Capture(1), "manifest.json"), nil, 0o600))
		h.Connect()
		h.start()
		require.Equal(t, Running, h.state(a))
		h.answers(a)
		require.Empty(t, h.files("sandboxes/*/captures/*"))
		h.pause(a)
		h.resume(a)
	})
}

// The collector ends what nobody wants and nothing else.
func TestCollect(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		h.create(id("a"))
		mine := h.sandbox(id("a")).journal()
		stray := sleeper(t, h.UIDs.UID(100))
		wanted := sleeper(t, mine.UID)
		other := sleeper(t, foreignUID)
		require.NoError(t, h.m.collect(t.Context()))
		require.Error(t, stray.Wait(), "killed")
		for _, cmd := range []*exec.Cmd{wanted, other} {
			require.NoError(t, cmd.Process.Signal(syscall.Signal(0)))
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()
		}
		h.answers(id("a"))
	})
}

// reaped notes what a runtime was told to end.
type reaped struct {
	*sandboxtest.Runtime
	mu   sync.Mutex
	uids map[string]int
	dirs []string // of disks
}

func (r *reaped) Reap(ctx context.Context, spec runtime.Spec) error {
	r.mu.Lock()
	r.uids[filepath.Base(spec.RunDir)] = spec.UID
	if spec.DiskDir != "" {
		r.dirs = append(r.dirs, spec.DiskDir)
	}
	r.mu.Unlock()
	return r.Runtime.Reap(ctx, spec)
}

// A template's boot that an agent died at is ended by its runtime; a uid that is a sandbox's by
// now is not touched.
func TestInterruptedTemplateBoot(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, uid := id("a"), h.UIDs.UID(100)
		h.create(a)
		h.stop()
		h.note("boot-1", bootNote{Runtime: h.Runtime.Name(), UID: uid, DiskDir: "/its/disk"})
		h.note("boot-2", bootNote{Runtime: h.Runtime.Name(), UID: h.sandbox(a).journal().UID})
		h.note("boot-3", bootNote{Runtime: h.Runtime.Name(), UID: foreignUID})
		r := &reaped{Runtime: h.Runtime, uids: map[string]int{}}
		h.runtimes = []runtime.Runtime{r}
		h.Connect()
		h.start()
		require.Equal(t, map[string]int{"boot-1": uid, "boot-2": 0, "boot-3": 0}, r.uids)
		require.Equal(t, []string{"/its/disk"}, r.dirs, "its devices are found by where its disk lay")
		require.Empty(t, h.m.bootNotes())
		h.answers(a)
	})
}

func (h *host) note(name string, n bootNote) {
	h.t.Helper()
	n.dir = filepath.Join(h.Data.Trash(), name)
	require.NoError(h.t, os.Mkdir(n.dir, 0o700))
	require.NoError(h.t, n.write())
}

// foreignUID is in no block of this process's hosts.
const foreignUID = 2_000_000

func sleeper(t *testing.T, uid int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "60")
	// No Pdeathsig: that is sent when the thread ends that started it, as threads of namespaces do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

// A uid that is not the installation's any more is not touched.
func TestForeignUID(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		real := h.uid(a)
		h.stop()
		h.Runtime.Kill(real, "reboot")
		h.edit(a, func(j *journal) { j.UID, j.BootID = foreignUID, "another" })
		foreign := sleeper(t, foreignUID)
		h.Connect()
		h.start()
		require.Equal(t, Lost, h.state(a))
		require.Zero(t, h.sandbox(a).spec(h.m).UID)
		h.destroy(a)
		require.NoError(t, foreign.Process.Signal(syscall.Signal(0)))
		require.NoError(t, foreign.Process.Kill())
		_ = foreign.Wait()
	})
}

// No secret of a sandbox is readable by others or gets into what is shown of it.
func TestSecretsStayInside(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		v := h.create(a)
		h.pause(a)
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		j := h.sandbox(a).journal()
		require.Len(t, j.AccessToken, 64)
		require.NotContains(t, string(raw), j.AccessToken)
		require.NotContains(t, string(raw), j.ControlToken)
		for _, path := range h.files("sandboxes/" + a + "/*") {
			st, err := os.Stat(path)
			require.NoError(t, err)
			require.Zero(t, st.Mode().Perm()&0o077, path)
		}
	})
}
