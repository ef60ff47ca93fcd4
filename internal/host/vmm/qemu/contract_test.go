package qemu_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	vmmtest.Main(m, func(ctx context.Context) (vmm.Driver, error) {
		return qemu.New(ctx, qemu.Options{Accel: qemu.AccelTCG})
	})
}

func TestContract(t *testing.T) {
	vmmtest.Run(t, func(t testing.TB) vmm.Driver { return newDriver(t) }, vmmtest.Build(t))
}

func BenchmarkRestore(b *testing.B) {
	vmmtest.BenchmarkRestore(b, newDriver(b), vmmtest.Build(b))
}

func newDriver(t testing.TB) *qemu.Driver {
	t.Helper()
	d, err := qemu.New(t.Context(), qemu.Options{Accel: qemu.AccelTCG, Logger: logTo(t)})
	require.NoError(t, err)
	return d
}

func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
