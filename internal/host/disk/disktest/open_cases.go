package disktest

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
)

func createReadsBaseAndZerosBeyond(r *rig) {
	live := r.create()
	vm := r.run(live)
	r.same(r.content, r.readAll(vm))
	r.put(vm, r.content, diskSize-4096, 4096)
	r.put(vm, r.content, baseSize-512, 1024)
	r.same(r.content, r.readAll(vm))
	r.stop(vm, live)
}

// A base smaller than the default size is a disk of that size, and not a block is written for it.
func defaultSizeTakesNoRoom(r *rig) {
	before, err := r.Usage(r.base.Path)
	require.NoError(r, err)
	live, err := r.Create(r.Context(), r.base, disk.DefaultSizeMB<<20, r.dir, r.index)
	require.NoError(r, err)
	require.EqualValues(r, disk.DefaultSizeMB<<20, live.SizeBytes)
	_, err = r.Attach(r.Context(), live)
	require.NoError(r, err)
	used, err := r.Usage(live.Path)
	require.NoError(r, err)
	require.Less(r, used, int64(mb))
	after, err := r.Usage(r.base.Path)
	require.NoError(r, err)
	require.Equal(r, before, after)
	st, err := os.Stat(r.base.Path)
	require.NoError(r, err)
	require.Equal(r, r.base.SizeBytes, st.Size(), "the base is never resized")
	require.NoError(r, r.RemoveLive(r.Context(), live))
}

func createRefusesBadSizes(r *rig) {
	for _, size := range []int64{-1, 0, baseSize - disk.SizeUnit, baseSize + 512} {
		_, err := r.Create(r.Context(), r.base, size, r.dir, 0)
		require.Truef(r, fault.Is(err, fault.Invalid), "%d bytes: %v", size, err)
	}
	require.Empty(r, r.files())
	stack := r.first(func(VM) {})
	_, err := r.Open(r.Context(), stack, diskSize-disk.SizeUnit, r.dir, r.nextIndex())
	require.True(r, fault.Is(err, fault.Invalid), "%v", err)
	_, err = r.Open(r.Context(), disk.Stack{Base: disk.Base{Path: filepath.Join(r.dir, "none"), SizeBytes: mb}}, mb, r.dir, r.nextIndex())
	require.True(r, fault.Is(err, fault.NotFound), "%v", err)
	require.Len(r, r.files(), 1)
}

func openMakesOneFile(r *rig) {
	r.index = 41
	live := r.create()
	require.Equal(r, disk.Stack{Base: r.base}, live.Stack)
	require.EqualValues(r, diskSize, live.SizeBytes)
	require.Equal(r, []string{live.Path}, r.files())
	require.Equal(r, r.LivePath(r.dir, 41), live.Path)
	require.Contains(r, filepath.Base(live.Path), "41")
	st, err := os.Stat(live.Path)
	require.NoError(r, err)
	require.Equal(r, os.FileMode(0o600), st.Mode().Perm())

	att, err := r.Attach(r.Context(), live)
	require.NoError(r, err)
	again, err := r.Attach(r.Context(), live)
	require.NoError(r, err)
	require.Equal(r, att, again)
	require.False(r, att.Nodes[len(att.Nodes)-1].ReadOnly)
	require.Equal(r, []string{live.Path}, r.files())
	require.NoError(r, r.Detach(r.Context(), live))
	require.NoError(r, r.Detach(r.Context(), live))
}

func openReplacesLeftoverNotStack(r *rig) {
	live := r.create()
	vm := r.run(live)
	r.write(vm, r.noise(mb), 0)
	r.stop(vm, live)
	live, err := r.Create(r.Context(), r.base, diskSize, r.dir, 0)
	require.NoError(r, err)
	vm = r.run(live)
	r.same(r.content, r.readAll(vm))
	r.stop(vm, live)

	stack := r.seal(live)
	check := r.unchanged(stack)
	_, err = r.Open(r.Context(), stack, diskSize, r.dir, 0)
	require.True(r, fault.Is(err, fault.Invalid), "%v", err)
	check()
}

func writesLeaveBaseAndLayersAlone(r *rig) {
	stack := r.first(func(vm VM) { r.put(vm, r.content, 3*mb+512, 2*mb) })
	stack = r.layer(stack, func(vm VM) { r.put(vm, r.content, 4*mb+1024, mb) })
	check := r.unchanged(stack)
	live := r.open(stack)
	vm := r.run(live)
	for _, offset := range []int64{0, 3 * mb, 4*mb + 4096, 40 * mb} {
		r.put(vm, r.content, offset, 300*1024)
	}
	require.NoError(r, vm.Flush())
	r.same(r.content, r.readAll(vm))
	r.stop(vm, live)
	check()
}

func depthIsBounded(r *rig) {
	stack := disk.Stack{Base: r.base}
	live := r.create()
	for len(stack.Layers) < disk.MaxDepth-1 {
		stack = r.seal(live)
		live = r.open(stack)
	}
	if r.Capabilities().LiveSeal {
		vm := r.run(live)
		_, _, err := r.Seal(r.Context(), live, r.nextIndex(), vm.Switch)
		require.True(r, fault.Is(err, fault.FailedPrecondition), "%v", err)
		r.stop(vm, live)
	}
	stack = r.seal(live)
	require.Len(r, stack.Layers, disk.MaxDepth)
	_, err := r.Open(r.Context(), stack, diskSize, r.dir, r.nextIndex())
	require.True(r, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.Contains(r, strings.ToLower(fault.HintOf(err)), "merge")
	require.Len(r, r.files(), disk.MaxDepth)
}

func canceledDoesNothing(r *rig) {
	live := r.create()
	ctx, cancel := context.WithCancel(r.Context())
	cancel()
	before := r.files()
	_, err := r.Create(ctx, r.base, diskSize, r.dir, r.nextIndex())
	require.True(r, fault.Is(err, fault.Canceled), "%v", err)
	_, err = r.Grow(ctx, live, 2*diskSize)
	require.True(r, fault.Is(err, fault.Canceled), "%v", err)
	_, _, err = r.Seal(ctx, live, r.nextIndex(), nil)
	require.True(r, fault.Is(err, fault.Canceled), "%v", err)
	stack := r.seal(live)
	_, err = r.Flatten(ctx, stack, filepath.Join(r.dir, "flat"))
	require.True(r, fault.Is(err, fault.Canceled), "%v", err)
	_, err = r.Merge(ctx, disk.Stack{Base: r.base}, stack.Layers, filepath.Join(r.dir, "merged"))
	require.True(r, fault.Is(err, fault.Canceled), "%v", err)
	require.Equal(r, before, r.files())
}
