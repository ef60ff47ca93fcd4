package firecracker_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/firecrackertest"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

// cgroupParent of the tests' VMs; a run beside another has leaves of other uids.
const cgroupParent = "roost-fctest"

func options() firecracker.Options { return firecracker.Options{CgroupParent: cgroupParent} }

func TestMain(m *testing.M) {
	firecrackertest.Play()
	if _, agent := os.LookupEnv("ROOST_VMMTEST_AGENT"); agent {
		vmmtest.Main(m, func(ctx context.Context) (vmm.Driver, error) { return firecracker.New(ctx, options()) })
		return
	}
	code := m.Run()
	_ = firecracker.RemoveCgroups(cgroupParent) // another run may be in it
	os.Exit(code)
}

// needsFirecracker skips a test by name where there is none that runs.
func needsFirecracker(t testing.TB) {
	t.Helper()
	if os.Getenv(firecracker.EnvBinary) == "" || os.Getenv(firecracker.EnvJailer) == "" {
		t.Skip("needs Firecracker and KVM: make test-firecracker FC=PATH JAILER=PATH")
	}
}

func TestContract(t *testing.T) {
	needsFirecracker(t)
	vmmtest.Run(t, newDriver, vmmtest.Build(t))
}

func newDriver(t testing.TB) vmm.Driver {
	t.Helper()
	o := options()
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := firecracker.New(t.Context(), o)
	require.NoError(t, err)
	return d
}

// TestProbe boots the suite's kernel.
func TestProbe(t *testing.T) {
	needsFirecracker(t)
	o := options()
	o.ProbeKernel = vmmtest.Build(t).KernelELF
	r := firecracker.Probe(t.Context(), o)
	t.Logf("%+v", r)
	require.True(t, r.Works, r.Reason)
}
