package qemu

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

// TestProbeSeesAGuest: the probe's own steps succeed where guests run, as they do translated.
func TestProbeSeesAGuest(t *testing.T) {
	t.Parallel()
	fixtures := vmmtest.Build(t)
	binary, err := exec.LookPath(binaryName)
	require.NoError(t, err)
	accel, err := tcgAccelerator("test")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o := Options{ProbeKernel: fixtures.Kernel, ProbeInitrd: fixtures.Initrd, ProbeUID: 65001}
	require.NoError(t, runProbe(ctx, binary, accel, o))

	accel.option = "tcg,thread=nonsense"
	require.ErrorContains(t, runProbe(ctx, binary, accel, o), "nonsense", "it says what QEMU said")
}

func TestSocketsAreReachableInDeepDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 20 {
		dir = filepath.Join(dir, "directory")
	}
	require.NoError(t, exec.Command("mkdir", "-p", dir).Run())
	l, err := listen(filepath.Join(dir, qmpSocket))
	require.NoError(t, err)
	defer l.Close()
	c, err := dial(filepath.Join(dir, qmpSocket))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, removeSockets(dir))
	require.NoError(t, removeSockets(dir), "removing what is gone")
}
