package firecracker_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

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
