package vmmtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

const (
	memoryMB = 256
	diskMB   = 64
	// answerTime is how long a guest may take to answer: it boots translated, on a machine
	// that runs other tests, or nested in a guest that is translated.
	answerTime = 4 * time.Minute
)

// machine is what one VM of a test stands on.
type machine struct {
	cfg vmm.Config
	net *network
}

var nextUID atomic.Int32

// newMachine makes directory, network, disk and what there is of memory, in the form that the
// driver takes them.
func (s *suite) newMachine(t testing.TB) *machine {
	t.Helper()
	uid := 70000 + int(nextUID.Add(1)) + 1000*(os.Getpid()%1000)
	m := &machine{net: newNetwork(t, s.caps.OpensTap, uid)}
	m.cfg = vmm.Config{
		ID: fmt.Sprintf("vm%d", uid), Dir: privateDir(t), VCPUs: 1, MemoryMB: memoryMB,
		Kernel: s.fixtures.kernelFor(s.caps), Initrd: s.fixtures.Initrd,
		Cmdline: "quiet vmmtest.addr=" + guestAddr,
		Tap:     m.net.tap, NetNS: m.net.path, TapName: m.net.tapName(), MAC: guestMAC,
		Drive: []vmm.Node{newDisk(t)},
		UID:   uid, GID: uid,
	}
	if !s.caps.OwnMemory {
		m.cfg.Memory = vmm.Memory{File: newMemory(t, memoryMB), Shared: true}
	}
	return m
}

func privateDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	require.NoError(t, os.Mkdir(dir, 0o700))
	return dir
}

func newDisk(t testing.TB) vmm.Node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, diskMB<<20))
	return vmm.Node{Path: path, Format: "raw"}
}

// overlay makes a disk of that size which begins as the drive is, and to which alone is written
// what a VM writes: a qcow2 file over it, or, where a drive is one node, a sparse copy. The VM that
// has the drive does not write meanwhile, or the overlay is for a live switch.
func (s *suite) overlay(t testing.TB, drive []vmm.Node, sizeMB int) []vmm.Node {
	t.Helper()
	if s.caps.BlockDrive {
		return []vmm.Node{copyOfDisk(t, drive, sizeMB)}
	}
	path := filepath.Join(t.TempDir(), "top.qcow2")
	// No backing file stands in the header: the drive alone says what it stands on.
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprintf("%dM", sizeMB))
	var out []vmm.Node
	for _, n := range drive {
		n.ReadOnly = true
		out = append(out, n)
	}
	return append(out, vmm.Node{Path: path, Format: "qcow2"})
}

func copyOfDisk(t testing.TB, drive []vmm.Node, sizeMB int) vmm.Node {
	t.Helper()
	out := vmm.Node{Path: filepath.Join(t.TempDir(), "copy.raw"), Format: "raw"}
	f, err := os.OpenFile(out.Path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(int64(sizeMB)<<20))
	from, err := os.Open(top(drive))
	require.NoError(t, err)
	defer from.Close()
	copyData(t, f, from)
	return out
}

// command runs one, which must succeed.
func command(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", cmd, out)
}

func newMemory(t testing.TB, mb int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("vmmtest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), "vmmtest memory")
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, f.Truncate(int64(mb)<<20))
	return f
}

func seal(t testing.TB, f *os.File) {
	t.Helper()
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	require.NoError(t, err)
}

// boot boots m and kills it at the test's end.
func (s *suite) boot(t testing.TB, m *machine) vmm.VM {
	t.Helper()
	vm, err := s.driver(t).Boot(t.Context(), m.cfg)
	require.NoError(t, err)
	killAtEnd(t, vm)
	return vm
}

func killAtEnd(t testing.TB, vm vmm.VM) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), answerTime)
		defer cancel()
		if t.Failed() {
			text, _ := vm.Console()
			t.Logf("console of %d:\n%s", vm.Handle().PID, text[max(0, len(text)-4000):])
		}
		if err := vm.Kill(ctx); !fault.Is(err, fault.FailedPrecondition) { // detached: somebody else's
			require.NoError(t, err)
		}
	})
}
