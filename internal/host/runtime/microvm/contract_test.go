package microvm_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/runtime/microvm"
	"github.com/roosthq/roost/internal/host/runtime/runtimetest"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
)

func TestContract(t *testing.T) {
	t.Parallel()
	runtimetest.Run(t, runtimetest.Harness{New: func(t testing.TB) runtime.Runtime {
		driver, err := qemu.New(t.Context(), qemu.Options{Accel: qemu.AccelTCG})
		require.NoError(t, err)
		return microvm.New(driver, qcow2.New())
	}})
}
