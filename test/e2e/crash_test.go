package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// TestAgentKilled: kill -9 of the agent with sandboxes running; the next one adopts them all.
func TestAgentKilled(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		ids := []string{r.run("create"), r.run("create"), r.run("create", "--timeout", "3s")}
		paused := r.run("create")
		secret := strings.Fields(r.sh(ids[0], counter))[0]
		r.run("pause", paused)
		for range 3 {
			_, n := r.count(ids[0])
			r.kill()
			r.up()
			r.stillCounts(ids[0], secret, n)
			require.Equal(t, "adopted", r.run("exec", ids[1], "--", "echo", "adopted"))
		}
		require.Equal(t, v1.Paused, r.info(paused).State)
		eventually(t, 20*time.Second, "idle timeouts are kept over a restart", func() bool { return r.info(ids[2]).State == v1.Paused })
		for _, id := range []string{paused, ids[2]} {
			r.run("resume", id)
			require.Equal(t, "awake", r.run("exec", id, "--", "echo", "awake"))
		}
	})
}

// vmPID finds a process of the sandbox, the machine's or the sentry's, by the uid that is the
// sandbox's alone.
func (r *roost) vmPID(id string) int {
	r.t.Helper()
	var journal struct {
		UID int `json:"uid"`
	}
	readJSON(r.t, filepath.Join(r.data, "sandboxes", id, "journal.json"), &journal)
	require.NotZero(r.t, journal.UID)
	entries, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(r.t, err)
	for _, dir := range entries {
		st, err := os.Stat(dir)
		if err != nil || int(st.Sys().(*syscall.Stat_t).Uid) != journal.UID {
			continue
		}
		// gVisor's others (the gofer, the processes that run user code) end with the sentry.
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		name, _, _ := strings.Cut(string(args), "\x00")
		if name = filepath.Base(name); name != "runsc-sandbox" && !strings.HasPrefix(name, "qemu") {
			continue
		}
		var pid int
		_, _ = fmt.Sscanf(filepath.Base(dir), "%d", &pid)
		return pid
	}
	r.t.Fatalf("no process of sandbox %s", id)
	return 0
}

// deathLimit: the host notices at once; what this bounds is how long a busy machine takes to be
// asked.
const deathLimit = 10 * time.Second

// TestVMKilled: a sandbox whose machine or sentry dies is failed, with the reason; its console
// stays.
func TestVMKilled(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, dies, while := r.run("create"), r.run("create"), r.run("create")
		require.NoError(t, unix.Kill(r.vmPID(id), unix.SIGKILL))
		eventually(t, deathLimit, "the sandbox is failed", func() bool { return r.info(id).State == v1.Failed })
		require.Contains(t, *r.info(id).Reason, "signal")
		r.run("logs", id) // kept, though a quiet guest said nothing
		require.NotZero(t, r.try("exec", id, "--", "true").code)
		if k.virtual {
			r.try("exec", "--user", "root", "--timeout", "5s", dies, "--", "sh", "-c", "echo c >/proc/sysrq-trigger")
			eventually(t, deathLimit, "a panic ends the sandbox", func() bool { return r.info(dies).State == v1.Failed })
			require.Contains(t, *r.info(dies).Reason, "panic")
			require.Contains(t, r.run("logs", dies), "sysrq")
		} else {
			r.try("exec", "--user", "root", "--timeout", "5s", dies, "--", "sh", "-c", "echo last words >/proc/1/fd/1; kill -SEGV 1; kill -KILL 1")
			eventually(t, deathLimit, "the end of its init ends the sandbox", func() bool { return r.info(dies).State == v1.Failed })
			require.NotEmpty(t, *r.info(dies).Reason)
			require.Contains(t, r.run("logs", dies), "last words")
		}
		// One that dies while no agent is there.
		pid := r.vmPID(while)
		r.kill()
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		r.up()
		require.Equal(t, v1.Failed, r.info(while).State)
		require.NotEmpty(t, *r.info(while).Reason)
		r.run("rm", id, dies, while)
	})
}

// killedVMs are the points that are tested with VMs too: those at which what the runtime left
// behind differs. What a destroy does, and what lies between two files of ours, does not.
var killedVMs = []string{"sandbox.pause.frozen", "sandbox.pause.captured", "sandbox.pause.published", "sandbox.start.launched"}

// TestKilledAt kills the agent at each named step of each operation. Afterwards what was
// acknowledged is there, whole, once.
func TestKilledAt(t *testing.T) {
	for _, c := range []struct {
		point, op string
		want      v1.SandboxState
	}{
		{"sandbox.pause.quiesced", "pause", v1.Running},
		{"sandbox.pause.frozen", "pause", v1.Running},
		{"sandbox.pause.captured", "pause", v1.Running},
		{"sandbox.pause.manifest", "pause", v1.Running},
		{"sandbox.pause.published", "pause", v1.Paused},
		{"sandbox.pause.stopped", "pause", v1.Paused},
		{"sandbox.start.slot", "resume", v1.Paused},
		{"sandbox.start.launched", "resume", v1.Paused},
		{"sandbox.start.handshake", "resume", v1.Paused},
		{"sandbox.resume.started", "resume", v1.Paused},
		{"sandbox.destroy.marked", "rm", ""},
		{"sandbox.destroy.stopped", "rm", ""},
		{"sandbox.destroy.renamed", "rm", ""},
	} {
		for _, k := range kinds {
			if k.virtual && !slices.Contains(killedVMs, c.point) {
				continue
			}
			t.Run(c.point+"/"+k.name, func(t *testing.T) { killedAt(t, k, c.point, c.op, c.want) })
		}
	}
}

func killedAt(t *testing.T, k kind, point, op string, want v1.SandboxState) {
	t.Parallel()
	r := start(t, k.flags()...)
	id := r.run("create", "--memory-mb", "256")
	secret := strings.Fields(r.sh(id, counter))[0]
	if op == "resume" {
		r.run("pause", id)
	}
	r.stop()
	r.up("ROOST_FAILPOINTS=" + point + "=kill")
	require.NotZero(t, r.try(op, id).code, "the agent dies at the point")
	r.dies()
	r.up()
	if want == "" {
		require.Empty(t, sandboxDirs(t, r))
		return
	}
	eventually(t, 20*time.Second, "the control plane agrees: "+string(want), func() bool { return r.info(id).State == want })
	require.Empty(t, strays(t, r, id))
	if want == v1.Paused {
		r.run("resume", id)
	}
	_, n := r.count(id)
	r.stillCounts(id, secret, n)
	// And the life goes on: what was interrupted works now.
	r.run("pause", id)
	r.run("resume", id)
	r.stillCounts(id, secret, n)
}

// TestKilledCreating: nothing is left of a create that nobody was told of.
func TestKilledCreating(t *testing.T) {
	for _, point := range []string{"sandbox.start.slot", "sandbox.start.launched", "sandbox.start.handshake"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := install(t)
			r.up() // templates' memory exists before the point is armed
			r.stop()
			r.up("ROOST_FAILPOINTS=" + point + "=kill")
			require.NotZero(t, r.try("create").code)
			r.dies()
			r.up()
			require.Empty(t, sandboxDirs(t, r))
			require.Equal(t, "works", r.run("exec", r.run("create"), "--", "echo", "works"))
		})
	}
}

// TestFailedAt makes each step of a pause fail: the sandbox is usable afterwards, and the next
// try succeeds.
func TestFailedAt(t *testing.T) {
	t.Parallel()
	r := install(t)
	armed := filepath.Join(r.data, "armed")
	points := []string{"quiesced", "frozen", "captured", "manifest"}
	var spec []string
	for _, p := range points {
		spec = append(spec, fmt.Sprintf("sandbox.pause.%s=error@%s-%s", p, armed, p))
	}
	spec = append(spec, "sandbox.start.handshake=error@"+armed+"-handshake", "sandbox.resume.started=error@"+armed+"-started")
	r.up("ROOST_FAILPOINTS=" + strings.Join(spec, ","))
	id := r.run("create")
	secret := strings.Fields(r.sh(id, counter))[0]
	for _, p := range points {
		require.NoError(t, os.WriteFile(armed+"-"+p, nil, 0o600))
		res := r.try("pause", id)
		require.NotZero(t, res.code, p)
		require.Contains(t, res.stderr, "sandbox.pause."+p)
		require.Equal(t, v1.Running, r.info(id).State, p)
		_, n := r.count(id)
		r.stillCounts(id, secret, n)
		require.NoError(t, os.Remove(armed+"-"+p))
	}
	r.run("pause", id)
	for _, p := range []string{"handshake", "started"} {
		require.NoError(t, os.WriteFile(armed+"-"+p, nil, 0o600))
		require.NotZero(t, r.try("resume", id).code, p)
		require.Equal(t, v1.Paused, r.info(id).State, p)
		require.Empty(t, strays(t, r, id))
		require.NoError(t, os.Remove(armed+"-"+p))
	}
	r.run("resume", id)
	r.stillCounts(id, secret, 0)
}

// TestDiskFull: a pause that finds the host's disk full leaves the sandbox running, says so,
// and succeeds once there is space.
func TestDiskFull(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := install(t, k.flags()...)
		require.NoError(t, os.MkdirAll(filepath.Join(r.data, "sandboxes"), 0o700))
		mount := filepath.Join(r.data, "sandboxes")
		require.NoError(t, unix.Mount("tmpfs", mount, "tmpfs", 0, "size=64m"))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(mount, 0)) })
		t.Cleanup(func() { // before the unmount: nothing may use it any more
			r.stop()
			_, _ = exec.Command(roostBin, "uninstall", "--data", r.data, "--yes", "--keep-images").CombinedOutput()
			_ = os.MkdirAll(mount, 0o700)
		})
		r.up()
		id := r.run("create")
		secret := strings.Fields(r.sh(id, counter))[0]
		r.sh(id, "head -c 100000000 /dev/urandom >/dev/shm/ballast; sha256sum /dev/shm/ballast >/dev/shm/sum")
		res := r.try("pause", id)
		require.NotZero(t, res.code)
		require.Contains(t, res.stderr, "full")
		require.Equal(t, v1.Running, r.info(id).State)
		_, n := r.count(id)
		r.stillCounts(id, secret, n)
		require.Empty(t, strays(t, r, id))
		require.NoError(t, unix.Mount("tmpfs", mount, "tmpfs", unix.MS_REMOUNT, "size=512m"))
		r.run("pause", id)
		r.run("resume", id)
		r.sh(id, "sha256sum -c /dev/shm/sum")
		r.stillCounts(id, secret, n)
		r.run("rm", id)
	})
}

func sandboxDirs(t *testing.T, r *roost) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.data, "sandboxes", "*"))
	require.NoError(t, err)
	trash := filepath.Join(r.data, "sandboxes", ".trash")
	found = slices.DeleteFunc(found, func(dir string) bool { return dir == trash })
	thrown, err := filepath.Glob(filepath.Join(trash, "*"))
	require.NoError(t, err)
	return append(found, thrown...)
}

// strays are files of a sandbox that an interrupted operation should have removed.
func strays(t *testing.T, r *roost, id string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.data, "sandboxes", id, "captures", ".tmp-*"))
	require.NoError(t, err)
	return found
}
