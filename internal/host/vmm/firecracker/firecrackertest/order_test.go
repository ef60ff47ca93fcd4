package firecrackertest_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/firecrackertest"
)

func TestMain(m *testing.M) {
	firecrackertest.Play()
	os.Exit(m.Run())
}

// start starts a stand-in and returns its API and its root directory.
func start(t *testing.T) (*api.Client, string) {
	t.Helper()
	binary, jailer := firecrackertest.Install(t)
	base := t.TempDir()
	cmd := exec.Command(jailer, "--id", "vm", "--exec-file", binary, "--uid", "64998", "--gid", "64998", "--chroot-base-dir", base,
		"--", "--api-sock", "/api.sock")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	root := filepath.Join(base, "firecracker", "vm", "root")
	client := api.New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(root, "api.sock"))
	})
	require.Eventually(t, func() bool { _, err := client.Version(t.Context()); return err == nil }, time.Minute, time.Millisecond)
	return client, root
}

// TestOrderAndState: what comes too soon, too late or in a wrong state is refused as the real one
// refuses it, and changes nothing.
func TestOrderAndState(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("the stand-in's jail needs root")
	}
	c, root := start(t)
	ctx := t.Context()
	snapshot := api.SnapshotCreate{Type: api.SnapshotDiff, State: "/state", Memory: "/memory"}
	load := api.SnapshotLoad{State: "/state", Memory: api.MemoryBackend{Type: api.MemoryFile, Path: "/memory"}}
	const before, after = "not supported before starting", "not supported after starting"

	require.ErrorContains(t, c.Pause(ctx), before)
	require.ErrorContains(t, c.CreateSnapshot(ctx, snapshot), before)
	require.ErrorContains(t, c.PatchDrive(ctx, api.DrivePatch{ID: "disk", Path: "/disk"}), before)
	require.ErrorContains(t, c.Start(ctx), "without kernel")
	require.ErrorContains(t, c.SetMachine(ctx, api.MachineConfig{VCPUs: 33, MemoryMB: 64}), "deserializing")
	require.NoError(t, c.SetMachine(ctx, api.MachineConfig{VCPUs: 1, MemoryMB: 64}))
	require.ErrorContains(t, c.LoadSnapshot(ctx, load), "not allowed after configuring boot-specific resources")
	require.ErrorContains(t, c.SetBootSource(ctx, api.BootSource{Kernel: "/kernel"}), "cannot be opened")
	require.NoError(t, os.WriteFile(filepath.Join(root, "kernel"), nil, 0o644))
	require.NoError(t, c.SetBootSource(ctx, api.BootSource{Kernel: "/kernel"}))
	require.NoError(t, c.Start(ctx))

	require.ErrorContains(t, c.Start(ctx), after)
	require.ErrorContains(t, c.AddDrive(ctx, api.Drive{ID: "disk", Path: "/kernel", Cache: "Unsafe", Engine: "Sync"}), after)
	require.ErrorContains(t, c.LoadSnapshot(ctx, load), after)
	require.ErrorContains(t, c.CreateSnapshot(ctx, snapshot), "unavailable while running")
	require.ErrorContains(t, c.PatchDrive(ctx, api.DrivePatch{ID: "disk", Path: "/kernel"}), "no such drive")
	require.NoError(t, c.Pause(ctx))
	require.NoError(t, c.Pause(ctx))
	require.NoError(t, c.CreateSnapshot(ctx, snapshot))
	in, err := c.Instance(ctx)
	require.NoError(t, err)
	require.Equal(t, api.Paused, in.State)
}

// TestLoadThatFailsEndsIt, as the real one's.
func TestLoadThatFailsEndsIt(t *testing.T) {
	t.Parallel()
	c, _ := start(t)
	err := c.LoadSnapshot(t.Context(), api.SnapshotLoad{State: "/none", Memory: api.MemoryBackend{Type: api.MemoryFile, Path: "/none"}})
	require.ErrorContains(t, err, "Load snapshot error")
	require.Eventually(t, func() bool { _, err := c.Version(t.Context()); return err != nil }, time.Minute, time.Millisecond)
}
