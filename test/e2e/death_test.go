package e2e

import (
	"fmt"
	"os"
	"path/filepath"
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
		if !isInstance(dir) {
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
