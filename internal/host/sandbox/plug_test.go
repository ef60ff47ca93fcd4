package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// opener is a runtime whose VMM opens its tap and boots an ELF kernel.
type opener struct{ runtime.Runtime }

func (opener) Capabilities() runtime.Capabilities {
	return runtime.Capabilities{GuestBoots: true, OpensTap: true, ELFKernel: true}
}

// TestPlugByCapability: a port comes as the runtime can take it, and never in two ways.
func TestPlugByCapability(t *testing.T) {
	t.Parallel()
	h := newHost(t, sandboxtest.VM)
	rt := opener{h.All()[0]}
	require.Equal(t, network.Tap, PortOf(rt))
	slot, err := h.Network.Acquire(t.Context(), "plug", network.Tap)
	require.NoError(t, err)
	defer func() { require.NoError(t, h.Network.Release(t.Context(), slot)) }()
	spec := runtime.Spec{UID: h.UIDs.UID(slot.Index())}
	unplug, err := plug(&spec, slot, rt)
	require.NoError(t, err)
	unplug()
	require.Nil(t, spec.Port.Tap)
	require.FileExists(t, spec.Port.Namespace)
	require.NotEmpty(t, spec.Port.TapName)
	require.Equal(t, network.GuestMAC.String(), spec.Port.MAC)
	_, err = plug(&runtime.Spec{}, slot, rt)
	require.True(t, fault.Is(err, fault.Invalid), "root's uid is no sandbox's: %v", err)
	spec = runtime.Spec{UID: spec.UID}
	unplug, err = plug(&spec, slot, h.All()[0])
	require.NoError(t, err)
	require.NotNil(t, spec.Port.Tap)
	require.Empty(t, spec.Port.Namespace+spec.Port.TapName)
	unplug()
	require.ErrorIs(t, spec.Port.Tap.Close(), os.ErrClosed)
}

// TestKernelByCapability: a runtime that boots ELF kernels is given one, or told why there is none.
func TestKernelByCapability(t *testing.T) {
	t.Parallel()
	h := newHost(t, sandboxtest.VM)
	template, err := h.Images.Template("base")
	require.NoError(t, err)
	src, err := h.m.bootFrom(h.All()[0], template, "token", t.TempDir())
	require.NoError(t, err)
	var spec runtime.Spec
	src.boots(&spec)
	require.Equal(t, []string{"initrd", ""}, []string{filepath.Base(spec.Initrd), spec.Template.KernelELF})
	_, err = h.m.bootFrom(opener{h.All()[0]}, template, "token", t.TempDir())
	require.True(t, fault.Is(err, fault.Invalid), err)
	require.ErrorContains(t, err, "it is no bzImage", "the test's kernel is a word")
}
