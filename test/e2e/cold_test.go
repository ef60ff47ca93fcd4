package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// TestDiskOnly: a pause without memory resumes by a boot, with the disk as it was.
func TestDiskOnly(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, want := r.small()
		r.run("pause", "--disk-only", id)
		require.Equal(t, paused, r.info(id).State)
		snap := r.snapshot(id, "--name", "bare")
		require.True(t, snap.DiskOnly != nil && *snap.DiskOnly)
		copied := r.run("create", "bare")
		r.holdsDisk(copied, want)
		r.run("resume", id)
		r.holdsDisk(id, want)
		require.NotZero(t, r.try("exec", id, "--", "test", "-e", "/dev/shm/kept").code, "memory was given up")
		require.Equal(t, id, r.run("exec", id, "--", "hostname"))
		again := r.fill(id)
		r.cycles(id, again) // and it is a sandbox like any other
		r.run("rm", id, copied)
		r.run("snapshot", "rm", "bare")
		r.sound()
	})
}

// TestColdResume: a sandbox that died starts again from what is left of it, and says what that is.
func TestColdResume(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, want := r.small()
		if !k.virtual {
			fresh := r.run("create", "--memory-mb", "256")
			require.NoError(t, unix.Kill(r.vmPID(fresh), unix.SIGKILL))
			r.settles(fresh, v1.Failed)
			res := r.try("resume", "--cold", fresh)
			require.NotZero(t, res.code, "gVisor keeps what was written with the memory: there is nothing to start from")
			require.NotEmpty(t, res.stderr)
			r.run("rm", fresh)
			r.cycles(id, want)
		}
		r.sh(id, "echo later >/root/later; sync")
		for range 2 { // a rescued one can be rescued
			require.NoError(t, unix.Kill(r.vmPID(id), unix.SIGKILL))
			r.settles(id, v1.Failed)
			require.NotZero(t, r.try("resume", id).code, "without --cold it stays failed")
			r.run("resume", "--cold", id)
			require.NotEmpty(t, *r.info(id).Reason, "it says what it started from")
			t.Log(*r.info(id).Reason)
			r.holdsDisk(id, want)
			require.Equal(t, k.virtual, r.try("exec", "--user", "root", id, "--", "test", "-e", "/root/later").code == 0)
			r.sh(id, "echo later >/root/later; sync")
		}
		r.run("pause", id)
		res := r.try("resume", "--cold", id)
		if k.virtual {
			require.Zero(t, res.code, res.stderr)
		} else {
			require.NotZero(t, res.code, "memory and disk are one: it would lose what it need not lose")
			require.Contains(t, res.stderr, "hint:")
			r.run("resume", id)
		}
		r.holdsDisk(id, want)
		r.sound()
		r.run("rm", id)
	})
}

// hangLimit: the 10 seconds, and what a busy machine adds; the soak shows what it took.
const hangLimit = time.Minute

// TestStopped: a machine or sentry that was stopped by a signal is failed, with the reason.
func TestStopped(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		s := trials.Begin(t, "stopped by a signal", k.name, 1, 10)
		slowest := time.Duration(0)
		s.Each(func(t *testing.T, _ int) {
			r := r.as(t)
			id := r.run("create", "--memory-mb", "256", "--timeout", "0")
			require.NoError(t, unix.Kill(r.vmPID(id), unix.SIGSTOP))
			began := time.Now()
			eventually(t, hangLimit, "it is failed", func() bool { return r.info(id).State == v1.Failed })
			slowest = max(slowest, time.Since(began))
			require.Contains(t, *r.info(id).Reason, "stopped")
			r.run("rm", id)
			r.sound()
		})
		s.Figure("seen after at most", "%.1f s", slowest.Seconds())
	})
}
