package gvisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
)

func TestReason(t *testing.T) {
	t.Parallel()
	killed := process.Status{Known: true, Code: -1, Signal: unix.SIGKILL}
	for _, c := range []struct {
		e    ending
		want string
	}{
		{ending{status: killed}, "killed by signal 9"},
		{ending{status: killed, oom: 1}, "out of memory"},
		{ending{status: process.Status{Known: true, Code: 137}, oom: 1}, "out of memory"},
		{ending{status: process.Status{}, oom: 2}, "out of memory"},
		{ending{status: process.Status{Known: true}, oom: 1}, "the guest agent ended with exit status 0"},
		{ending{status: process.Status{}}, "ended, exit status unknown"},
		{ending{status: process.Status{Known: true, Code: 3}, said: []byte("a\nroost-guest: \x1b[1mbad\n")}, "the guest agent ended with exit status 3: roost-guest: [1mbad"},
		{ending{status: process.Status{Known: true, Code: 143}}, "the guest agent was killed by signal 15"},
		{ending{status: process.Status{Known: true, Code: 2}, panicked: "runtime error"}, "the sentry panicked: runtime error"},
	} {
		require.Equal(t, c.want, c.e.reason())
	}
}

func TestEndsByItself(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(*box)
		want string
	}{
		"guest agent":  {func(b *box) { _, _ = b.sh("echo last words >/proc/1/fd/1; kill -ABRT 1") }, "the guest agent ended with exit status 2"},
		"killed":       {func(b *box) { require.NoError(b.t, unix.Kill(b.in.rec.PID, unix.SIGKILL)) }, "killed by signal 9"},
		"sentry panic": {func(b *box) { require.NoError(b.t, unix.Kill(b.in.rec.PID, unix.SIGUSR2)) }, "the sentry panicked: Signal-induced panic"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			rt := *b.rt
			rt.flags = []string{"--panic-signal=" + strconv.Itoa(int(unix.SIGUSR2))}
			b.rt = &rt
			b.boot(runtime.BootOptions{})
			c.do(b)
			e := b.exit()
			require.True(t, strings.HasPrefix(e.Reason, c.want), e.Reason)
			require.False(t, e.Requested)
			require.NoError(t, b.in.Stop(b.ctx()))
			require.False(t, b.in.Exit().Requested, "it ended before Stop")
			require.Error(t, b.in.Thaw(b.ctx()))
			require.DirExists(t, b.in.rec.Live, "its file stays until Discard")
			b.in = nil
		})
	}
}

// TestOutOfMemory: who takes more memory than there is ends, and only in its own sandbox.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	if !b.rt.cgroups.inForce("memory") {
		t.Skip("no memory limit on this host")
	}
	other := newBox(t)
	other.boot(runtime.BootOptions{})
	b.boot(runtime.BootOptions{})
	// Within its memory, it works.
	b.run("dd if=/dev/zero of=/dev/null bs=250M count=1")
	_, err := b.sh("dd if=/dev/zero of=/dev/null bs=600M count=1")
	require.Error(t, err)
	select {
	case <-b.in.Exited(): // the sentry is what the kernel has chosen
		require.Equal(t, "out of memory", b.in.Exit().Reason)
	default:
		require.Positive(t, b.rt.cgroups.oomKills(b.in.rec.Leaf))
		require.Equal(t, "lives", b.run("echo lives"))
	}
	require.Equal(t, "lives", other.run("echo lives"))
	require.Zero(t, other.rt.cgroups.oomKills(other.in.rec.Leaf))
}

// What a sentry has written is read up to a bound.
func TestLastWordsAreBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), panicLog)
	require.Empty(t, firstLine(path))
	require.NoError(t, os.WriteFile(path, []byte("\npanic: bad\n"), 0o600))
	require.NoError(t, os.Truncate(path, 1<<40)) // no host could read that
	require.Equal(t, "bad", firstLine(path))
}
