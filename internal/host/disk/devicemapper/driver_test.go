package devicemapper_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/disktest"
)

// TestUnevenBase: a base may have any size, whatever devices count in.
func TestUnevenBase(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "unev")
	for _, size := range []int64{300, 512, 4096 + 17, mb + 512, mb + 4096 - 1} {
		base := disk.Base{Path: filepath.Join(t.TempDir(), "base.raw"), SizeBytes: size}
		content := noise(int(size))
		require.NoError(t, os.WriteFile(base.Path, content, 0o400))
		want := make([]byte, 2*mb)
		copy(want, content)
		live, err := d.Create(t.Context(), base, 2*mb, t.TempDir(), 0)
		require.NoError(t, err)
		vm := attach(t, d, live)
		require.True(t, bytes.Equal(want, read(t, vm, 0, 2*mb)), "%d bytes", size)
		_, err = d.Attach(t.Context(), live)
		require.NoError(t, err)
		stop(t, d, vm, live)
		stack := seal(t, d, live)
		merged, err := d.Merge(t.Context(), disk.Stack{Base: base}, stack.Layers, filepath.Join(t.TempDir(), "m"))
		require.NoError(t, err)
		flat, err := d.Flatten(t.Context(), disk.Stack{Base: base}.With(merged), filepath.Join(t.TempDir(), "f"))
		require.NoError(t, err)
		got, err := os.ReadFile(flat.Path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%d bytes", size)
	}
	census(t, d)
}

// TestForkOfAFrozenDisk: the VM that was captured still has its device for writing when another
// disk reads the same file as a layer.
func TestForkOfAFrozenDisk(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "fork")
	live := create(t, d, 16*mb)
	vm := attach(t, d, live)
	data := noise(mb)
	write(t, vm, data, 3*mb+512)
	require.NoError(t, vm.Flush())
	stack := seal(t, d, live)
	require.Equal(t, stack, seal(t, d, live), "once more, for its sum")
	bare, _, err := d.Seal(t.Context(), disk.Live{Path: live.Path, SizeBytes: live.SizeBytes}, 0, nil)
	require.NoError(t, err)
	require.Equal(t, stack.Layers[0], bare, "the stack is not needed")

	child, err := d.Open(t.Context(), stack, 32*mb, t.TempDir(), 0)
	require.NoError(t, err)
	other := attach(t, d, child)
	require.True(t, bytes.Equal(data, read(t, other, 3*mb+512, mb)))
	write(t, other, noise(mb), 3*mb)
	require.True(t, bytes.Equal(data, read(t, vm, 3*mb+512, mb)))
	require.NoError(t, d.Verify(t.Context(), stack.Layers[0]))

	// The VM goes on with the next disk, as after a thaw.
	next, err := d.Open(t.Context(), stack, live.SizeBytes, filepath.Dir(live.Path), 1)
	require.NoError(t, err)
	att, err := d.Attach(t.Context(), next)
	require.NoError(t, err)
	require.NoError(t, vm.Switch(t.Context(), att))
	require.NoError(t, d.Detach(t.Context(), live))
	write(t, vm, noise(mb), 0)
	require.True(t, bytes.Equal(data, read(t, vm, 3*mb+512, mb)))
	stop(t, d, vm, next)
	stop(t, d, other, child)
	require.NoError(t, d.Verify(t.Context(), stack.Layers[0]))
	census(t, d)
}

// TestFailedCaptureRunsOn: sealing cuts the file off at its end, and a VM that runs on after all
// makes it larger again, also when its devices were made anew.
func TestFailedCaptureRunsOn(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "runs")
	live := create(t, d, 16*mb)
	vm := attach(t, d, live)
	seal(t, d, live)
	_, err := d.Attach(t.Context(), live)
	require.NoError(t, err, "an agent that adopts the frozen VM")
	require.NoError(t, os.Chmod(live.Path, 0o600))
	data := noise(16 * mb)
	write(t, vm, data, 0)
	require.NoError(t, vm.Flush())
	require.True(t, bytes.Equal(data, read(t, vm, 0, len(data))))
	stack := seal(t, d, live)
	require.NoError(t, vm.Close())
	require.NoError(t, d.Detach(t.Context(), live))
	_, err = d.Attach(t.Context(), live)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "it is sealed: %v", err)
	require.NoError(t, d.Verify(t.Context(), stack.Layers[0]))
	require.NoError(t, os.Chmod(live.Path, 0o600))
	vm = attach(t, d, live)
	require.True(t, bytes.Equal(data, read(t, vm, 0, len(data))))
	stop(t, d, vm, live)
	census(t, d)
}

// TestAnotherAgentFinds: a new driver knows a disk's devices by what they stand on, and a name of
// the data directory is as good as another.
func TestAnotherAgentFinds(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "find")
	live := create(t, d, 16*mb)
	vm := attach(t, d, live)
	data := noise(mb)
	write(t, vm, data, mb)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(filepath.Dir(live.Path), link))
	second, elsewhere := newDriver(t, "find"), live
	elsewhere.Path = filepath.Join(link, filepath.Base(live.Path))
	att, err := second.Attach(t.Context(), elsewhere)
	require.NoError(t, err)
	at, err := os.Stat(att.Nodes[0].Path)
	require.NoError(t, err)
	for _, l := range []disk.Live{live, elsewhere} {
		holds, err := second.Holds(t.Context(), l, at)
		require.NoError(t, err)
		require.True(t, holds)
	}
	other, err := d.Open(t.Context(), live.Stack, live.SizeBytes, filepath.Dir(live.Path), 1)
	require.NoError(t, err)
	holds, err := second.Holds(t.Context(), other, at)
	require.NoError(t, err)
	require.False(t, holds)
	_, err = second.Holds(t.Context(), disk.Live{Path: live.Path + "x"}, at)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.True(t, bytes.Equal(data, read(t, vm, mb, mb)))
	require.NoError(t, vm.Close())
	require.NoError(t, second.RemoveLive(t.Context(), disk.Live{Path: live.Path}), "the path is enough")
	require.NoFileExists(t, live.Path)
	require.NoError(t, d.Detach(t.Context(), live))
	census(t, d)
}

// TestStaleDeviceIsCleared: a device of an older file of the same name is nobody's.
func TestStaleDeviceIsCleared(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "stal")
	live := create(t, d, 16*mb)
	vm := attach(t, d, live)
	write(t, vm, noise(mb), 0)
	require.NoError(t, vm.Close()) // and never detached
	live, err := d.Create(t.Context(), live.Stack.Base, 16*mb, filepath.Dir(live.Path), 0)
	require.NoError(t, err)
	base, err := os.ReadFile(live.Stack.Base.Path)
	require.NoError(t, err)
	vm = attach(t, d, live)
	require.True(t, bytes.Equal(base, read(t, vm, 0, len(base))))
	devices, loops := kinds(mapped(t, d))
	require.Equal(t, []int{2, 2}, []int{devices, loops})

	require.NoError(t, vm.Close())
	require.NoError(t, d.Detach(t.Context(), live))
	grown, err := d.Grow(t.Context(), live, 32*mb)
	require.NoError(t, err)
	_, err = d.Attach(t.Context(), live) // of the size that its record was lost with
	require.NoError(t, err)
	vm = attach(t, d, grown)
	require.EqualValues(t, 32*mb, vm.Size())
	stop(t, d, vm, grown)
	census(t, d)
}

// TestTwoInstallations: neither lists, removes or takes up anything of the other's.
func TestTwoInstallations(t *testing.T) {
	t.Parallel()
	one, two := newDriver(t, "ione"), newDriver(t, "itwo")
	base := newBase(t, 4*mb)
	open := func(d disk.Driver) (disk.Live, disktest.VM) {
		live, err := d.Create(t.Context(), base, 16*mb, t.TempDir(), 0)
		require.NoError(t, err)
		att, err := d.Attach(t.Context(), live)
		require.NoError(t, err)
		return live, disktest.OpenDevice(t, att)
	}
	liveOne, vmOne := open(one)
	liveTwo, vmTwo := open(two)
	data := noise(mb)
	write(t, vmTwo, data, mb)
	ours := mapped(t, one)
	require.ElementsMatch(t, []string{base.Path, liveOne.Path}, paths(ours))
	for _, m := range mapped(t, two) {
		_ = one.Unmap(t.Context(), m) // an error for a device, nothing for a loop that is not ours
	}
	require.True(t, fault.Is(one.Unmap(t.Context(), ours[0]), fault.FailedPrecondition), "a VM has it")
	require.NoError(t, vmOne.Close())
	for _, m := range ours {
		require.NoError(t, one.Unmap(t.Context(), m), m)
	}
	for _, m := range ours {
		require.NoError(t, one.Unmap(t.Context(), m), m)
	}
	census(t, one)
	require.True(t, bytes.Equal(data, read(t, vmTwo, mb, mb)))
	stop(t, two, vmTwo, liveTwo)
	census(t, two)
}

// TestHeldOpenDuringDeletes: somebody looks at each device for a while as it is removed.
func TestHeldOpenDuringDeletes(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "held")
	base, dir := newBase(t, 4*mb), t.TempDir()
	var all sync.WaitGroup
	for i := range 40 {
		live, err := d.Create(t.Context(), base, 16*mb, dir, i)
		require.NoError(t, err)
		vm := attach(t, d, live)
		hold := time.Duration(rand.IntN(5000)) * time.Millisecond
		time.AfterFunc(hold, vm.Kill)
		all.Go(func() {
			if err := d.RemoveLive(t.Context(), live); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.Empty(t, filesIn(t, dir))
	census(t, d)
}

// TestBusyDetachIsAnError: the file stays, nothing is pulled from under the user, and all goes
// when he does.
func TestBusyDetachIsAnError(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "busy")
	stack := seal(t, d, create(t, d, 16*mb))
	live, err := d.Open(t.Context(), stack, 16*mb, t.TempDir(), 0)
	require.NoError(t, err)
	vm := attach(t, d, live)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	err = d.RemoveLive(gone, live)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.FileExists(t, live.Path)
	data := noise(mb)
	write(t, vm, data, 8*mb)
	require.True(t, bytes.Equal(data, read(t, vm, 8*mb, mb)))
	require.NoError(t, vm.Close())
	require.Eventually(t, func() bool { return len(mapped(t, d)) == 0 }, time.Minute, 10*time.Millisecond, "the kernel removes the chain")
	require.NoError(t, d.RemoveLive(t.Context(), live))
}
