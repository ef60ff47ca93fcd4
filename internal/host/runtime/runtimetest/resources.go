package runtimetest

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func allocatedBytes(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	require.NoError(t, syscall.Lstat(path, &st))
	return st.Blocks * 512
}

// testUsage: what the guest takes is what Usage says.
func (s *suite) testUsage(t *testing.T) {
	const diskMB, ramMB = 20, 30
	b := s.fresh(t)
	before, err := b.in.Usage()
	require.NoError(t, err)
	require.Positive(t, before.MemoryBytes)
	b.sh("dd if=/dev/urandom of=/root/big bs=1M count=%d 2>/dev/null; sync", diskMB)
	written, err := b.in.Usage()
	require.NoError(t, err)
	require.GreaterOrEqual(t, written.DiskBytes-before.DiskBytes, int64(diskMB)<<20)
	require.Less(t, written.DiskBytes-before.DiskBytes, int64(2*diskMB)<<20)
	b.sh("dd if=/dev/urandom of=/dev/shm/big bs=1M count=%d 2>/dev/null", ramMB)
	touched, err := b.in.Usage()
	require.NoError(t, err)
	require.GreaterOrEqual(t, touched.MemoryBytes-written.MemoryBytes, int64(ramMB)<<20*9/10)
	require.Less(t, touched.MemoryBytes, int64(2*memoryMB)<<20)
}

// testDiskSize: a larger disk than the capture's, where the runtime can.
func (s *suite) testDiskSize(t *testing.T) {
	tpl := s.template(t)
	b := s.newBox(t)
	if !b.rt.Capabilities().FixedDisk {
		b.spec.Resources.DiskSizeMB = 4 * warmDiskMB
	}
	facts := b.start(tpl)
	b.sizeIs(b.spec.Resources.DiskSizeMB)
	require.InDelta(t, b.rootMB(), facts.RootBytes>>20, 1, "the handshake's fact")
	b.sh("dd if=/dev/zero of=/root/big bs=1M count=8 2>/dev/null && sync")
}

// testDiskFull: the guest cannot write more than its disk holds, and survives that.
func (s *suite) testDiskFull(t *testing.T) {
	b := s.fresh(t)
	out, code, err := b.try(b.ctx(), "dd if=/dev/urandom of=/root/fill bs=1M")
	require.NoError(t, err)
	require.NotZero(t, code)
	require.Contains(t, out, "No space left")
	usage, err := b.in.Usage()
	require.NoError(t, err)
	require.LessOrEqual(t, usage.DiskBytes, int64(warmDiskMB)<<20*5/4)
	b.sh("rm /root/fill && echo works >/root/file && sync")
	require.Equal(t, "works", b.sh("cat /root/file"))
}

// testMemory: a sandbox that wants more memory than it has hurts nobody but itself.
func (s *suite) testMemory(t *testing.T) {
	other := s.fresh(t)
	tick := other.tick()
	b := s.fresh(t)
	// Readers that are fed nothing hold what they have read: more than all memory together.
	const eater = `(dd if=/dev/zero bs=%dM count=1 2>/dev/null; echo $? >/root/eaten) | sleep 100000`
	for range 8 {
		if stream, err := b.exec(b.ctx(), fmt.Sprintf(eater, memoryMB/5)); err == nil { // it may have ended
			stream.Receive()
			_ = stream.Close()
		}
	}
	b.await("the end of an eater, or of the sandbox", func() bool {
		select {
		case <-b.in.Exited():
			return true
		default:
		}
		text, err := b.read("/root/eaten")
		return err == nil && strings.TrimSpace(text) != ""
	})
	select {
	case <-b.in.Exited():
		require.Contains(t, b.in.Exit().Reason, "out of memory")
	default:
		require.NotEqual(t, "0", strings.TrimSpace(b.content("/root/eaten")))
		b.sh("echo lives on")
	}
	other.goesOn(tick, other.ticks(tick))
}
