package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/installation"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/runtime"
)

// fake is a runtime of which only what it is matters.
type fake struct {
	runtime.Runtime
	isolation runtime.Isolation
	caps      runtime.Capabilities
	trimmed   int
}

func (f *fake) Capabilities() runtime.Capabilities { return f.caps }
func (f *fake) Identity() map[string]string        { return map[string]string{"driver": "fake"} }
func (f *fake) Files(runtime.Capture) ([]string, error) {
	return []string{"file"}, nil
}

func (f *fake) Trim(time.Duration) error {
	f.trimmed++
	return nil
}

func (f *fake) Reap(context.Context, runtime.Spec) error { return errors.New("reaped") }

func works(name string, isolation runtime.Isolation) candidate {
	return candidate{name: name, isolation: isolation, rt: &fake{isolation: isolation}, why: "it does"}
}

func broken(name string, isolation runtime.Isolation) candidate {
	err := fault.New(fault.FailedPrecondition, "find", name, "not there").WithHint("install " + name)
	return candidate{name: name, isolation: isolation, err: err}
}

// The strongest isolation that works comes first, unless the operator says otherwise.
func TestOrderOfRuntimes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		chosen string
		have   runtimes
		want   string
	}{
		{"auto", runtimes{works("qemu", runtime.Hardware), works("gvisor", runtime.Sentry)}, "qemu"},
		{"auto", runtimes{works("qemu", runtime.Emulated), works("gvisor", runtime.Sentry)}, "gvisor"},
		{"auto", runtimes{works("firecracker", runtime.Hardware), works("qemu", runtime.Hardware), works("gvisor", runtime.Sentry)}, "firecracker"},
		{"auto", runtimes{broken("firecracker", runtime.Hardware), works("qemu", runtime.Hardware), works("gvisor", runtime.Sentry)}, "qemu"},
		{"auto", runtimes{broken("firecracker", runtime.Hardware), works("qemu", runtime.Emulated), works("gvisor", runtime.Sentry)}, "gvisor"},
		{"auto", runtimes{broken("firecracker", runtime.Hardware), works("qemu", runtime.Emulated), broken("gvisor", runtime.Sentry)}, "qemu"},
		{"qemu", runtimes{works("firecracker", runtime.Hardware), works("qemu", runtime.Hardware), works("gvisor", runtime.Sentry)}, "qemu"},
		{"firecracker", runtimes{broken("firecracker", runtime.Hardware), works("qemu", runtime.Hardware), works("gvisor", runtime.Sentry)}, "firecracker"},
		{"auto", runtimes{works("qemu", runtime.Emulated), broken("gvisor", runtime.Sentry)}, "qemu"},
		{"auto", runtimes{broken("qemu", runtime.Emulated), works("gvisor", runtime.Sentry)}, "gvisor"},
		{"qemu", runtimes{works("qemu", runtime.Emulated), works("gvisor", runtime.Sentry)}, "qemu"},
		{"gvisor", runtimes{works("qemu", runtime.Hardware), works("gvisor", runtime.Sentry)}, "gvisor"},
		{"gvisor", runtimes{works("qemu", runtime.Hardware), broken("gvisor", runtime.Sentry)}, "gvisor"},
	} {
		c.have.sort(c.chosen)
		require.Equal(t, c.want, c.have[0].name, c)
	}
}

func TestNothingWorks(t *testing.T) {
	t.Parallel()
	all := runtimes{broken("qemu", runtime.Emulated), broken("gvisor", runtime.Sentry)}
	err := all.failure(runtimeAuto)
	require.ErrorContains(t, err, "start runtime qemu: find qemu: not there")
	require.ErrorContains(t, err, "start runtime gvisor: find gvisor: not there")
	require.Equal(t, "install qemu", fault.HintOf(err))
	err = all.failure("gvisor")
	require.NotContains(t, err.Error(), "qemu")
	require.Equal(t, "install gvisor", fault.HintOf(err))
	working, absent := all.working()
	require.Empty(t, working)
	require.Len(t, absent, 2)
	require.Equal(t, network.Tap, all.port())
}

func TestWhatIsSaidOfRuntimes(t *testing.T) {
	t.Parallel()
	all := runtimes{works("qemu", runtime.Emulated), broken("gvisor", runtime.Sentry)}
	all[0].limits = machineLimits
	info := all.describe()
	require.True(t, info[0].Available)
	require.Equal(t, []any{"gvisor", "sentry", false, "find gvisor: not there", "install gvisor"},
		[]any{info[1].Name, info[1].Isolation, info[1].Available, info[1].Reason, info[1].Hint})
	found := map[string]doctor.Finding{}
	for _, f := range doctor.Run(t.Context(), all.checks()) {
		require.NotContains(t, found, f.Name)
		found[f.Name] = f
		if f.Status != doctor.OK {
			require.NotEmpty(t, f.Hint, f.Name)
		}
	}
	require.Equal(t, doctor.Warn, found["runtime"].Status, "emulation by default is warned of")
	require.Equal(t, doctor.OK, found["qemu"].Status)
	require.Contains(t, found["qemu"].Detail, "no guarantee")
	require.Equal(t, doctor.Warn, found["gvisor"].Status)
	require.Equal(t, "install gvisor", found["gvisor"].Hint)
	require.Contains(t, found, "qemu limits")
	require.NotContains(t, found, "gvisor limits")
	require.Equal(t, doctor.OK, runtimes{works("gvisor", runtime.Sentry)}.choice(t.Context()).Status)
}

func TestALazyRuntime(t *testing.T) {
	t.Parallel()
	made, fail := 0, errors.New("not now")
	real := &fake{}
	l := &lazy{name: "qemu", isolation: runtime.Emulated, caps: runtime.Capabilities{GuestBoots: true}, open: func(context.Context) (runtime.Runtime, error) {
		if fail != nil {
			return nil, fail
		}
		made++
		return real, nil
	}}
	require.Equal(t, "qemu", l.Name())
	require.Equal(t, runtime.Emulated, l.Isolation())
	require.True(t, l.Capabilities().GuestBoots)
	require.NoError(t, l.Trim(0))
	require.Zero(t, made, "to know what it is does not make it")
	require.Nil(t, l.Identity())
	for _, err := range lazyErrors(t.Context(), l) {
		require.ErrorIs(t, err, fail)
	}
	fail = nil // tried again
	require.Equal(t, "fake", l.Identity()["driver"])
	files, err := l.Files(runtime.Capture{})
	require.NoError(t, err)
	require.Equal(t, []string{"file"}, files)
	require.ErrorContains(t, l.Reap(t.Context(), runtime.Spec{}), "reaped")
	require.NoError(t, l.Trim(0))
	require.Equal(t, []int{1, 1}, []int{made, real.trimmed})
}

func lazyErrors(ctx context.Context, l *lazy) []error {
	var spec runtime.Spec
	_, boot := l.Boot(ctx, spec, runtime.BootOptions{})
	_, restore := l.Restore(ctx, spec, runtime.Capture{})
	_, adopt := l.Adopt(ctx, spec, nil)
	_, _, compact := l.Compact(ctx, spec, runtime.Capture{})
	_, console := l.ConsoleOf(spec)
	_, files := l.Files(runtime.Capture{})
	return []error{boot, restore, adopt, compact, console, files, l.Discard(ctx, spec), l.Reap(ctx, spec)}
}

// What a runtime can is known before it is made.
func TestQEMUWithoutKVM(t *testing.T) {
	t.Parallel()
	c := openQEMU(t.Context(), site{opts: upOptions{accel: "tcg"}, installation: &installation.Installation{}})
	if c.err != nil {
		t.Skip("needs qemu-system-x86_64")
	}
	caps := c.rt.Capabilities()
	require.True(t, caps.GuestBoots && caps.DiskApart)
	require.False(t, caps.OpensTap || caps.ELFKernel || caps.TakesNamespace)
}

// Whoever chose to do without KVM, or has no Firecracker, is told so and waits for no trial.
func TestFirecrackerIsNotTried(t *testing.T) {
	t.Parallel()
	s := site{opts: upOptions{accel: "tcg", runtime: runtimeAuto}, installation: &installation.Installation{}, kernelELF: func() (string, error) {
		return "", errors.New("no kernel is made for it")
	}}
	c := openFirecracker(t.Context(), s)
	require.Nil(t, c.rt)
	require.ErrorContains(t, c.err, "no KVM, as the operator chose")
	require.Equal(t, "leave out --accel tcg", fault.HintOf(c.err))
	s.opts = upOptions{runtime: runtimeAuto, firecracker: "/nonexistent/firecracker", jailer: "/nonexistent/jailer"}
	s.kernelELF = func() (string, error) { return "/nonexistent/vmlinux", nil }
	c = openFirecracker(t.Context(), s)
	require.Nil(t, c.rt)
	require.ErrorContains(t, c.err, "/nonexistent/firecracker")
}
