package microvm_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk/devicemapper"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/runtime/microvm"
	"github.com/roosthq/roost/internal/host/runtime/runtimetest"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
)

// TestFirecrackerContract is the contract with Firecracker over device-mapper, and page servers.
func TestFirecrackerContract(t *testing.T) {
	if os.Getenv(firecracker.EnvBinary) == "" || os.Getenv(firecracker.EnvJailer) == "" {
		t.Skip("needs Firecracker, KVM and device-mapper: make test-firecracker FC=PATH JAILER=PATH")
	}
	installation := fmt.Sprintf("t%03d", os.Getpid()%1000)
	disks, err := devicemapper.New(devicemapper.Options{Installation: installation})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disks.Close()) })
	runtimetest.Run(t, runtimetest.Harness{New: func(t testing.TB) runtime.Runtime {
		driver, err := firecracker.New(t.Context(), firecracker.Options{CgroupParent: "roost-" + installation})
		require.NoError(t, err)
		return microvm.New(driver, disks)
	}})
}
