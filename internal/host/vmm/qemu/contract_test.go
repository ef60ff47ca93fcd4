package qemu_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

func TestContract(t *testing.T) {
	vmmtest.Run(t, func(t testing.TB) vmm.Driver { return newDriver(t) }, vmmtest.Build(t))
}

func newDriver(t testing.TB) *qemu.Driver {
	t.Helper()
	d, err := qemu.New(t.Context(), qemu.Options{Accel: qemu.AccelTCG, Logger: logTo(t)})
	require.NoError(t, err)
	return d
}

func BenchmarkRestore(b *testing.B) {
	vmmtest.BenchmarkRestore(b, newDriver(b), vmmtest.Build(b))
}

func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
