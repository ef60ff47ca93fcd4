package firecracker_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/firecrackertest"
)

// TestRates: a VM has the rates of the driver that started it, not those that its state was saved
// with.
func TestRates(t *testing.T) {
	t.Parallel()
	limited := limitedDriver(t, 100<<20, 50<<20)
	cfg := wired(fakeConfig(t))
	vm, g := boot(t, limited, cfg)
	require.Equal(t, "104857600 52428800", g.Ask(t, "rates"))
	state := saveState(t, vm)
	require.NoError(t, vm.Kill(t.Context()))

	_, memory := template(t, limited, "write 7 template")
	for rates, d := range map[string]*firecracker.Driver{
		"1048576 2097152": limitedDriver(t, 1<<20, 2<<20), "0 0": fakeDriver(t),
	} {
		next := wired(fakeConfig(t))
		next.Kernel, next.Memory = "", vmm.Memory{Path: memory}
		vm, err := d.Restore(t.Context(), next, state, nil)
		require.NoError(t, err)
		killAtEnd(t, vm)
		require.Equal(t, rates, firecrackertest.Reach(t, vm.Handle()).Ask(t, "rates"))
	}
}

func limitedDriver(t *testing.T, disk, net int64) *firecracker.Driver {
	t.Helper()
	o := options()
	o.Binary, o.Jailer = firecrackertest.Install(t)
	o.DiskRate, o.NetRate = disk, net
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := firecracker.New(t.Context(), o)
	require.NoError(t, err)
	return d
}

// wired adds a network interface: the stand-in opens no tap.
func wired(cfg vmm.Config) vmm.Config {
	cfg.NetNS, cfg.TapName, cfg.MAC = "/proc/self/ns/net", "tap0", "02:00:00:00:00:01"
	return cfg
}
