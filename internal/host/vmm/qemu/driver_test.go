package qemu_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

func TestNewWithoutQEMU(t *testing.T) {
	t.Parallel()
	_, err := qemu.New(t.Context(), qemu.Options{Binary: "/nonexistent/qemu"})
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.Contains(t, fault.HintOf(err), "apt-get install qemu-system-x86")
}

func TestNewWithWrongOptions(t *testing.T) {
	t.Parallel()
	_, err := qemu.New(t.Context(), qemu.Options{Accel: "xen"})
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	_, err = qemu.New(t.Context(), qemu.Options{Binary: "/bin/true", Accel: qemu.AccelTCG})
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	one, two := newDriver(t).Identity(), newDriver(t).Identity()
	require.Equal(t, one, two)
	require.Len(t, one.Build, 64)
	require.Regexp(t, `^\d+\.\d+\.\d+`, one.Version)
	require.Regexp(t, `tsc_early_khz=\d+ tsc=reliable`, one.Cmdline)
	require.Contains(t, one.CPU, "tcg:")
}

// TestProbe demands an answer that was tried out: on a host whose KVM runs guests it is yes.
func TestProbe(t *testing.T) {
	t.Parallel()
	fixtures := vmmtest.Build(t)
	binary, err := exec.LookPath("qemu-system-x86_64")
	require.NoError(t, err)
	dirs := probeDirs(t)
	began := time.Now()
	r := qemu.Probe(t.Context(), binary, qemu.Options{
		ProbeKernel: fixtures.Kernel, ProbeInitrd: fixtures.Initrd, Logger: logTo(t),
	})
	t.Logf("works: %v, %s (%d ms)", r.Works, r.Reason, time.Since(began).Milliseconds())
	require.Less(t, time.Since(began), 10*time.Second)
	require.NotEmpty(t, r.Reason)
	require.Equal(t, dirs, probeDirs(t), "the probe left its directory")

	auto, err := qemu.New(t.Context(), qemu.Options{ProbeKernel: fixtures.Kernel, ProbeInitrd: fixtures.Initrd})
	require.NoError(t, err)
	require.Equal(t, r.Works, auto.Capabilities().Accelerated)
	require.Equal(t, r.Works, auto.Identity().Cmdline == "console=ttyS0 reboot=t panic=-1", "only TCG needs the clock's rate")
	began = time.Now()
	_, err = qemu.New(t.Context(), qemu.Options{ProbeKernel: fixtures.Kernel, ProbeInitrd: fixtures.Initrd})
	require.NoError(t, err)
	require.Less(t, time.Since(began), time.Second, "the answer is kept")
}

func probeDirs(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "roost-kvm-probe-*"))
	require.NoError(t, err)
	return dirs
}
