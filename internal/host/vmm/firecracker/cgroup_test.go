package firecracker

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseMounts(t *testing.T) {
	t.Parallel()
	const v1 = `tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
`
	version, at := parseMounts(v1, func(string, string) bool { return false })
	require.Equal(t, 1, version)
	require.Equal(t, map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory"}, at)
	version, at = parseMounts("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", func(string, string) bool { return true })
	require.Equal(t, 2, version)
	require.Equal(t, "/sys/fs/cgroup", at["pids"])
	version, _ = parseMounts("proc /proc proc rw 0 0\n", nil)
	require.Zero(t, version)
}

func TestSettings(t *testing.T) {
	t.Parallel()
	c := cgroups{version: 2, parent: "roost-x", mounts: map[string]string{"memory": t.TempDir()}}
	for _, name := range controllers {
		c.limits = append(c.limits, Limit{Name: name, InForce: true})
	}
	require.Equal(t, []string{
		"--cgroup-version", "2", "--parent-cgroup", "roost-x", "--cgroup", "cpu.max=200000 100000",
		"--cgroup", "memory.max=645922816", "--cgroup", "pids.max=18",
	}, c.args(2, 512))
	c.version = 1
	require.Contains(t, c.args(2, 512), "memory.limit_in_bytes=645922816")
	require.Contains(t, c.args(2, 512), "cpu.cfs_quota_us=200000")
	require.Empty(t, c.none("no").args(2, 512))
}

// TestWordsInPieces: lines are understood however they come, and only whole ones.
func TestWordsInPieces(t *testing.T) {
	t.Parallel()
	w := newWords()
	for _, piece := range []string{"x reboot: Power down\n", "[    1.0] reb", "oot: Power", " down"} {
		w.hear([]byte(piece))
	}
	require.Empty(t, w.reason())
	w.hear([]byte("\r\n"))
	<-w.off
	require.Equal(t, guestOff, w.reason())
	w.hear([]byte("[    1.0] reboot: Power down\n")) // again
	w.hear(make([]byte, 1<<20))
	require.LessOrEqual(t, len(w.line), maxLine)
}
