package firecracker_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/firecrackertest"
)

const (
	memoryMB = 64
	diskMB   = 4
	soon     = time.Minute
)

var nextUID atomic.Int32

// fakeDriver drives the stand-in.
func fakeDriver(t testing.TB) *firecracker.Driver {
	t.Helper()
	o := options()
	o.Binary, o.Jailer = firecrackertest.Install(t)
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := firecracker.New(t.Context(), o)
	require.NoError(t, err)
	return d
}

// fakeConfig is of a VM that boots.
func fakeConfig(t testing.TB) vmm.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("jails need root")
	}
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	require.NoError(t, os.Mkdir(run, 0o700))
	kernel := filepath.Join(dir, "vmlinux")
	require.NoError(t, os.WriteFile(kernel, []byte("\x7fELF and more"), 0o444))
	uid := 170000 + int(nextUID.Add(1)) + 1000*(os.Getpid()%1000)
	return vmm.Config{
		ID: "sb1", Dir: run, VCPUs: 1, MemoryMB: memoryMB, Kernel: kernel, Cmdline: "quiet",
		Drive: []vmm.Node{newDisk(t)}, UID: uid, GID: uid,
	}
}

func newDisk(t testing.TB) vmm.Node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, diskMB<<20))
	return vmm.Node{Path: path, Format: "raw"}
}

func boot(t testing.TB, d *firecracker.Driver, cfg vmm.Config) (vmm.VM, *firecrackertest.Guest) {
	t.Helper()
	vm, err := d.Boot(t.Context(), cfg)
	require.NoError(t, err)
	killAtEnd(t, vm)
	return vm, firecrackertest.Reach(t, vm.Handle())
}

func killAtEnd(t testing.TB, vm vmm.VM) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		if err := vm.Kill(ctx); !fault.Is(err, fault.FailedPrecondition) { // detached
			require.NoError(t, err)
		}
	})
}

func saveState(t testing.TB, vm vmm.VM) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, vm.Pause(t.Context()))
	require.NoError(t, vm.SaveState(t.Context(), f))
	return f
}

// dirtyPages are the pages of Dirty that are data.
func dirtyPages(t testing.TB, vm vmm.VM) map[int]string {
	t.Helper()
	f, err := vm.Dirty(t.Context())
	require.NoError(t, err)
	defer f.Close()
	out := map[int]string{}
	page := make([]byte, 4096)
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err != nil {
			return out
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		require.NoError(t, err)
		for ; data < hole; data += 4096 {
			_, err := f.ReadAt(page, data)
			require.NoError(t, err)
			out[int(data/4096)] = strings.TrimRight(string(page), "\x00")
		}
		at = hole
	}
}

// template saves a booted VM: device state and its memory, which nobody can write.
func template(t testing.TB, d *firecracker.Driver, write string) (*os.File, string) {
	t.Helper()
	vm, g := boot(t, d, fakeConfig(t))
	g.Ask(t, write)
	state := saveState(t, vm)
	dir := filepath.Join(t.TempDir(), "private")
	require.NoError(t, os.Mkdir(dir, 0o700))
	memory := filepath.Join(dir, "memory")
	f, err := os.OpenFile(memory, os.O_RDWR|os.O_CREATE, 0o400)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(memoryMB<<20))
	for page, text := range dirtyPages(t, vm) {
		_, err := f.WriteAt([]byte(text), int64(page)*4096)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	require.NoError(t, vm.Kill(t.Context()))
	return state, memory
}

func restore(t testing.TB, d *firecracker.Driver, state *os.File, memory vmm.Memory) (vmm.VM, *firecrackertest.Guest) {
	t.Helper()
	cfg := fakeConfig(t)
	cfg.Kernel, cfg.Memory = "", memory
	vm, err := d.Restore(t.Context(), cfg, state, nil)
	require.NoError(t, err)
	killAtEnd(t, vm)
	return vm, firecrackertest.Reach(t, vm.Handle())
}

// requireNothing: of a VM that is gone only the console's file stays, and no cgroup.
func requireNothing(t testing.TB, d *firecracker.Driver, cfg vmm.Config) {
	t.Helper()
	entries, err := os.ReadDir(cfg.Dir)
	require.NoError(t, err)
	for _, e := range entries {
		require.True(t, strings.HasPrefix(e.Name(), "console.log"), "%s stays", e.Name())
	}
	groups, err := d.Groups(t.Context())
	require.NoError(t, err)
	for _, g := range groups {
		require.NotEqual(t, cfg.UID, g.UID, "cgroup %s stays", g.Name)
	}
}

func awaitExit(t testing.TB, vm vmm.VM) vmm.Exit {
	t.Helper()
	select {
	case <-vm.Exited():
	case <-time.After(soon):
		require.Fail(t, "the VM's end was not seen")
	}
	return vm.Exit()
}
