package gvisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// TestLife: a capture holds processes, memory and disk, and its source runs on.
func TestLife(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	b.run("echo kept >/root/file; (n=0; while :; do n=$((n+1)); echo $n >/root/n.new; mv /root/n.new /root/n; sleep 0.01; done) >/dev/null 2>&1 & while [ ! -s /root/n ]; do sleep 0.01; done")
	b.freeze()
	_, _, err := b.in.Capture(b.ctx(), t.TempDir(), runtime.CaptureOptions{})
	require.NoError(t, err)
	c, stats := b.capture(runtime.CaptureOptions{})
	require.Positive(t, stats.BytesWritten)
	require.Len(t, stats.Phases, 2)
	b.thaw()
	n := b.restored(c)
	require.Equal(t, "kept", n.run("cat /root/file"))
	n.run("n=$(cat /root/n); while [ $(cat /root/n) -lt $((n+2)) ]; do sleep 0.01; done")
	b.run("n=$(cat /root/n); while [ $(cat /root/n) -lt $((n+2)) ]; do sleep 0.01; done")
	require.NoError(t, b.in.Stop(b.ctx()))
	require.NoError(t, b.in.Stop(b.ctx()), "twice")
	require.True(t, b.exit().Requested)
	require.NoFileExists(t, b.in.rec.Live, "a captured disk's file is of no use")
}

// TestInside: what a sandbox sees is what was asked.
func TestInside(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.spec.Resources.DiskSizeMB = 300
	b.boot(runtime.BootOptions{})
	require.Equal(t, "307200", strings.Fields(b.run("df -k / | tail -1"))[1])
	require.Equal(t, b.run("stat -c %d /"), b.run("stat -c %d /tmp"), "/tmp is on the disk")
	total, err := strconv.Atoi(b.run(`awk '/MemTotal/{print $2}' /proc/meminfo`))
	require.NoError(t, err)
	if b.rt.cgroups.inForce("memory") {
		require.Equal(t, (256+overheadMB)<<10, total)
	}
	for _, line := range []string{
		"touch /root/x && chown user:user /root/x && [ $(stat -c %U /root/x) = user ]",
		"mknod /dev/n c 1 3", "mkdir /mnt && mount -t tmpfs none /mnt", "echo x >/dev/shm/y", "[ -c /dev/ptmx ]",
		"su user -c 'id -u' | grep 1000", "! touch /run/.roost-guest/x", "ulimit -n 100000",
		"[ $(cat /proc/1/status | awk '/^PPid/{print $2}') = 0 ]", "hostname | grep roost",
	} {
		b.run(line)
	}
	require.NotContains(t, b.run("cat /proc/mounts"), world, "no path of the host")
}

// TestNoNetwork: without a namespace there is no interface.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.spec.Port.Namespace = ""
	in, err := b.rt.Boot(b.ctx(), b.spec, runtime.BootOptions{})
	require.NoError(t, err)
	b.in = in.(*instance)
	require.NoError(t, b.in.Stop(b.ctx()))
}

// TestTemplate: capturing a template ends it, and many start from it, each with a disk of its own.
func TestTemplate(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{Template: true})
	c, _ := b.capture(runtime.CaptureOptions{})
	require.True(t, b.exit().Requested)
	one, two := b.restored(c), b.restored(c)
	one.run("echo one >/root/who")
	two.run("[ ! -e /root/who ]")
	require.NotEqual(t, one.run("head -c 16 /dev/urandom | md5sum"), two.run("head -c 16 /dev/urandom | md5sum"))
}

// TestDiskOnly: files, deletions, owners and attributes are kept, processes are not.
func TestDiskOnly(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	b.run(`mkdir -p /root/d/e && head -c 3000000 /dev/urandom >/root/d/e/f && chown -R user:user /root/d && chmod 600 /root/d/e/f
rm /etc/group; rm -r /home; mkdir /home; ln -s /root/d /root/link; echo t >/tmp/t; chmod 4755 /tmp/t; mkfifo /root/fifo; ln /tmp/t /root/hard
sleep 1000 >/dev/null 2>&1 &`)
	sum := b.run("md5sum /root/link/e/f")
	c, stats := b.capture(runtime.CaptureOptions{DiskOnly: true})
	require.Greater(t, stats.BytesWritten, int64(3000000))
	b.thaw()
	require.Equal(t, sum, b.run("md5sum /root/link/e/f"), "it runs on")
	full, _ := b.capture(runtime.CaptureOptions{})

	n := newBox(t)
	in, err := n.rt.Boot(n.ctx(), n.spec, runtime.BootOptions{From: &c})
	require.NoError(t, err)
	n.in = in.(*instance)
	n.meet()
	n.handshake()
	require.Equal(t, sum, n.run("md5sum /root/link/e/f"))
	require.Equal(t, "600 1000 1000", n.run("stat -c '%a %u %g' /root/d/e/f"))
	n.run("[ ! -e /etc/group ] && [ ! -e /home/user ] && [ -p /root/fifo ] && [ -e /etc/passwd ] && [ -u /tmp/t ]")
	n.run("! pgrep sleep")

	_, err = n.rt.Boot(n.ctx(), newBox(t).spec, runtime.BootOptions{From: &full})
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	_, err = n.rt.Restore(n.ctx(), newBox(t).spec, c)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
}

// TestFailedCapture: a full disk costs a sandbox nothing.
func TestFailedCapture(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.boot(runtime.BootOptions{})
	small := t.TempDir()
	require.NoError(t, unix.Mount("none", small, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	b.run("echo before >/root/f; head -c 4000000 /dev/urandom >/root/big")
	_, _, err := b.in.Capture(b.ctx(), small, runtime.CaptureOptions{})
	require.True(t, fault.Is(err, fault.FailedPrecondition), "not frozen: %v", err)
	for _, opts := range []runtime.CaptureOptions{{}, {DiskOnly: true}} {
		b.freeze()
		_, _, err = b.in.Capture(b.ctx(), small, opts)
		require.Error(t, err)
		require.Equal(t, fault.ResourceExhausted, fault.KindOf(err), "%v", err)
		left, err := os.ReadDir(small)
		require.NoError(t, err)
		require.Empty(t, left)
		_, _, err = b.in.Capture(b.ctx(), filepath.Join(small, "gone"), opts)
		require.ErrorIs(t, err, os.ErrNotExist)
		b.thaw()
		require.Equal(t, "before", b.run("cat /root/f"))
	}
	c, _ := b.capture(runtime.CaptureOptions{})
	require.Equal(t, "before", b.restored(c).run("cat /root/f"))
}

// TestSwap: a sandbox at its limit does not go on in the host's swap.
func TestSwap(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	if !b.rt.cgroups.countsSwap() {
		t.Skip("this kernel counts no swap")
	}
	b.boot(runtime.BootOptions{})
	file, want := "memory.swap.max", "0"
	if b.rt.cgroups.version == 1 {
		file, want = "memory.memsw.limit_in_bytes", strconv.Itoa((b.spec.Resources.MemoryMB+overheadMB)<<20)
	}
	raw, err := os.ReadFile(filepath.Join(b.rt.cgroups.dir("memory"), b.in.rec.Leaf, file))
	require.NoError(t, err)
	require.Equal(t, want, strings.TrimSpace(string(raw)))
}

// TestWithoutCgroups: on a host without any, sandboxes run unlimited and are measured by process.
func TestWithoutCgroups(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	rt := *b.rt
	rt.cgroups = rt.cgroups.none("this test has none")
	b.rt = &rt
	b.boot(runtime.BootOptions{})
	require.Empty(t, b.in.rec.Leaf)
	before, err := b.in.Usage()
	require.NoError(t, err)
	require.Positive(t, before.MemoryBytes)
	b.run("head -c 100000000 /dev/urandom >/dev/shm/f; head -c 20000000 /dev/urandom >/root/f")
	after, err := b.in.Usage()
	require.NoError(t, err)
	// Far less than was written: the share of what all sandboxes share shrinks as more start.
	require.Greater(t, after.MemoryBytes, before.MemoryBytes+20_000_000)
	require.GreaterOrEqual(t, after.DiskBytes, int64(20_000_000))
	c, _ := b.capture(runtime.CaptureOptions{})
	n := newBoxOf(t, b.rt)
	n.token, n.gen = b.token, b.gen
	n.restore(c)
	require.Equal(t, "100000000", n.run("stat -c %s /dev/shm/f"))
}
