//go:build failpoints

package microvm

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

// counted counts what was let go of.
type counted struct {
	disk.Driver
	detached atomic.Int32
}

func (c *counted) Detach(ctx context.Context, live disk.Live) error {
	c.detached.Add(1)
	return c.Driver.Detach(ctx, live)
}

// A disk that cannot be let go of is a hard error, keeps the base attached, and keeps nothing
// else: the VM is gone and its memory free. The next Stop completes. Not parallel: the
// environment is shared.
func TestStopThatCannotDetach(t *testing.T) {
	const uid, diskBytes = 1_900_000_123, 1 << 20
	fixtures := vmmtest.Build(t)
	driver, err := qemu.New(t.Context(), qemu.Options{Accel: qemu.AccelTCG})
	require.NoError(t, err)
	disks := &counted{Driver: qcow2.New()}
	r := New(driver, disks)
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	require.NoError(t, os.WriteFile(base, make([]byte, diskBytes), 0o400))
	spec := runtime.Spec{
		ID: "stop", UID: uid, RunDir: filepath.Join(dir, "run"), DiskDir: filepath.Join(dir, "disk"), Initrd: fixtures.Initrd,
		Resources: runtime.Resources{VCPUs: 1, MemoryMB: 128, DiskSizeMB: 1},
		Template:  runtime.Template{Kernel: fixtures.Kernel, Disk: base, DiskBytes: diskBytes},
	}
	require.NoError(t, os.Mkdir(spec.RunDir, 0o700))
	require.NoError(t, os.Mkdir(spec.DiskDir, 0o700))
	t.Cleanup(func() { require.NoError(t, r.Discard(context.Background(), spec)) })
	started, err := r.Boot(t.Context(), spec, runtime.BootOptions{})
	require.NoError(t, err)
	in := started.(*instance)
	live := in.top.live

	t.Setenv("ROOST_FAILPOINTS", "microvm.stop.detach=error")
	for range 2 {
		err := in.Stop(t.Context())
		require.ErrorContains(t, err, "failpoint microvm.stop.detach")
		require.ErrorContains(t, err, live.Path)
		<-in.Exited()
		require.True(t, in.Exit().Requested)
		require.Zero(t, disks.detached.Load(), "the base stays attached")
		require.FileExists(t, live.Path)
		_, err = in.ram.memory.File.Stat()
		require.ErrorIs(t, err, os.ErrClosed, "the memory is released")
	}
	t.Setenv("ROOST_FAILPOINTS", "")
	for n := range int32(2) {
		require.NoError(t, in.Stop(t.Context()))
		require.Equal(t, n+1, disks.detached.Load())
	}
}
