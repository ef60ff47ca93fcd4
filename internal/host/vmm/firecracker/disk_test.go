package firecracker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

func writesTo(t testing.TB, vm vmm.VM, n vmm.Node) {
	t.Helper()
	want, err := os.Stat(n.Path)
	require.NoError(t, err)
	got, err := vm.WritesTo(t.Context())
	require.NoError(t, err)
	require.True(t, os.SameFile(want, got))
}

func head(t testing.TB, n vmm.Node) string {
	t.Helper()
	f, err := os.Open(n.Path)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 4)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	return string(b)
}

func TestSwitchDisk(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	vm, g := boot(t, d, cfg)
	old, next := cfg.Drive[0], newDisk(t)
	writesTo(t, vm, old)
	err := vm.SwitchDisk(t.Context(), []vmm.Node{next})
	require.True(t, fault.Is(err, fault.FailedPrecondition), "of one that runs: %v", err)
	require.NoError(t, vm.Pause(t.Context()))
	for range 2 {
		require.NoError(t, vm.SwitchDisk(t.Context(), []vmm.Node{next}))
		writesTo(t, vm, next)
		require.Equal(t, "/disk", g.Ask(t, "path"), "saved state has the stable name")
	}
	g.Ask(t, "disk 0 next")
	require.Equal(t, "next", head(t, next))
	require.Equal(t, "\x00\x00\x00\x00", head(t, old))

	missing := next
	missing.Path += "x"
	require.Error(t, vm.SwitchDisk(t.Context(), []vmm.Node{missing}))
	require.Error(t, vm.SwitchDisk(t.Context(), []vmm.Node{old, next}))
	writesTo(t, vm, next)
	require.NoError(t, vm.SwitchDisk(t.Context(), []vmm.Node{old}), "and back")
	writesTo(t, vm, old)
}

func TestGrowDisk(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	vm, g := boot(t, d, cfg)
	require.Equal(t, "4194304", g.Ask(t, "size"))
	const most = 100 << 20 // more than its memory: the limit of its files is raised
	require.Error(t, vm.GrowDisk(t.Context(), most), "it is not that large yet")
	require.Error(t, vm.GrowDisk(t.Context(), -1))
	require.NoError(t, os.Truncate(cfg.Drive[0].Path, most))
	require.NoError(t, vm.GrowDisk(t.Context(), most))
	g.Ask(t, "disk 104857500 end")
}

// loop makes a block device of a disk; it is gone when nobody has it open.
func loop(t testing.TB) vmm.Node {
	t.Helper()
	backing, err := os.OpenFile(newDisk(t).Path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer backing.Close()
	ctl, err := os.Open("/dev/loop-control")
	require.NoError(t, err)
	defer ctl.Close()
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		require.NoError(t, err)
		path := fmt.Sprintf("/dev/loop%d", n)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		config := &unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(f.Fd()), config)
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			require.NoError(t, f.Close())
			continue
		}
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		return vmm.Node{Path: path, Format: "raw"}
	}
}

// A VMM may take a device after it was given up on: its jail gets that one's node.
func TestNodeOfADeviceTakenLate(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	old, next := loop(t), loop(t)
	cfg.Drive = []vmm.Node{old}
	vm, g := boot(t, d, cfg)
	require.NoError(t, vm.Pause(t.Context()))
	require.NoError(t, vm.SwitchDisk(t.Context(), []vmm.Node{next}))
	node := filepath.Join(filepath.Dir(vm.Handle().Socket), "disk")
	was, err := os.Stat(old.Path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(node))
	require.NoError(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(was.Sys().(*syscall.Stat_t).Rdev)))
	h := vm.Handle()
	vm.Detach()
	again, err := d.Adopt(t.Context(), h)
	require.NoError(t, err)
	killAtEnd(t, again)
	saveState(t, again)
	writesTo(t, again, next)
	require.Equal(t, "/disk", g.Ask(t, "path"))
	now, err := os.Stat(node)
	require.NoError(t, err)
	want, err := os.Stat(next.Path)
	require.NoError(t, err)
	require.Equal(t, want.Sys().(*syscall.Stat_t).Rdev, now.Sys().(*syscall.Stat_t).Rdev)
	require.Equal(t, cfg.UID, int(now.Sys().(*syscall.Stat_t).Uid))
	require.NoError(t, again.SwitchDisk(t.Context(), []vmm.Node{old}), "and on")
	writesTo(t, again, old)
}

// TestBlockDevice: the jail has a node of its own, and what is told is the host's.
func TestBlockDevice(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	file := cfg.Drive[0]
	old, next := loop(t), loop(t)
	cfg.Drive = []vmm.Node{old}
	vm, g := boot(t, d, cfg)
	writesTo(t, vm, old)
	node, err := os.Stat(filepath.Join(filepath.Dir(vm.Handle().Socket), "disk"))
	require.NoError(t, err)
	require.Equal(t, os.ModeDevice|0o600, node.Mode())
	require.Equal(t, cfg.UID, int(node.Sys().(*syscall.Stat_t).Uid))
	require.NoError(t, vm.Pause(t.Context()))
	err = vm.SwitchDisk(t.Context(), []vmm.Node{file})
	require.True(t, fault.Is(err, fault.FailedPrecondition), "from a device to a file: %v", err)
	require.NoError(t, vm.SwitchDisk(t.Context(), []vmm.Node{next}))
	writesTo(t, vm, next)
	require.Equal(t, "/disk", g.Ask(t, "path"))
	g.Ask(t, "disk 0 next")
	require.NoError(t, vm.Kill(t.Context()))
	require.Equal(t, "next", head(t, next))
	require.Equal(t, "\x00\x00\x00\x00", head(t, old))
	info, err := os.Stat(next.Path)
	require.NoError(t, err)
	require.Zero(t, info.Sys().(*syscall.Stat_t).Uid, "the host's node is not touched")
}
