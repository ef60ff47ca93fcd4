package qcow2_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/disktest"
)

// TestEveryImageIsSound: QEMU finds nothing to repair in images that this driver wrote, as made
// and after use, at sizes on both sides of what one L2 table covers.
func TestEveryImageIsSound(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{4 * mb, 512 * mb, 512*mb + disk.SizeUnit, 5 * gb, 4096 * gb} {
		live := create(t, size)
		requireSound(t, live.Path)
		data := noise(mb)
		withVM(t, live, func(vm disktest.VM) {
			require.Equal(t, size, vm.Size())
			write(t, vm, data, size-mb)
			write(t, vm, data, mb+512)
		})
		requireSound(t, live.Path)
		stack := seal(t, live)
		merged, err := driver.Merge(t.Context(), disk.Stack{Base: stack.Base}, stack.Layers, filepath.Join(t.TempDir(), "m"))
		require.NoError(t, err)
		requireSound(t, merged.Path)
		over, err := driver.Open(t.Context(), disk.Stack{Base: stack.Base}.With(merged), size, t.TempDir(), 0)
		require.NoError(t, err)
		withVM(t, over, func(vm disktest.VM) {
			require.True(t, bytes.Equal(data, read(t, vm, size-mb, mb)))
			require.True(t, bytes.Equal(data, read(t, vm, mb+512, mb)))
		})
	}
}

func TestEmptyImageIsSmall(t *testing.T) {
	t.Parallel()
	live := create(t, 5*gb)
	used, err := driver.Usage(live.Path)
	require.NoError(t, err)
	require.LessOrEqual(t, used, int64(64<<10))
}

// TestGrowAcrossTables grows past what the L1 table had entries for, after a VM used the disk.
func TestGrowAcrossTables(t *testing.T) {
	t.Parallel()
	live := create(t, 8*mb)
	data := noise(mb)
	withVM(t, live, func(vm disktest.VM) { write(t, vm, data, 7*mb) })
	for _, size := range []int64{512 * mb, 3 * gb, 4096 * gb} {
		grown, err := driver.Grow(t.Context(), live, size)
		require.NoError(t, err)
		requireSound(t, grown.Path)
		withVM(t, grown, func(vm disktest.VM) {
			require.Equal(t, size, vm.Size())
			require.True(t, bytes.Equal(data, read(t, vm, 7*mb, mb)))
			require.True(t, bytes.Equal(make([]byte, mb), read(t, vm, size-mb, mb)))
			write(t, vm, data, size-mb)
			require.NoError(t, vm.Zero(size-mb, mb))
		})
		requireSound(t, grown.Path)
		live = grown
	}
	_, err := driver.Grow(t.Context(), live, 4097*gb)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	_, err = driver.Create(t.Context(), live.Stack.Base, 4097*gb, t.TempDir(), 0)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
}

// TestGrowClearsStaleEntries: what lay behind the end of the L1 table must not become content.
func TestGrowClearsStaleEntries(t *testing.T) {
	t.Parallel()
	live := create(t, 512*mb)
	withVM(t, live, func(vm disktest.VM) { write(t, vm, noise(mb), 0) })
	raw, err := os.ReadFile(live.Path)
	require.NoError(t, err)
	const l1 = 3 << 16
	patch(t, live.Path, l1+8, raw[l1:l1+8])
	grown, err := driver.Grow(t.Context(), live, gb)
	require.NoError(t, err)
	requireSound(t, grown.Path)
	withVM(t, grown, func(vm disktest.VM) {
		require.True(t, bytes.Equal(make([]byte, mb), read(t, vm, 512*mb, mb)))
	})
}

// TestMergeKeepsThreeKindsApart looks at a merged layer alone: changed, zeroed and unchanged
// stay three things, or a layer below would show through or be hidden.
func TestMergeKeepsThreeKindsApart(t *testing.T) {
	t.Parallel()
	live := create(t, 4*mb)
	withVM(t, live, func(vm disktest.VM) {
		write(t, vm, noise(64<<10), 0)
		require.NoError(t, vm.Zero(mb, 128<<10))
		write(t, vm, make([]byte, 64<<10), 2*mb)
	})
	stack := seal(t, live)
	merged, err := driver.Merge(t.Context(), disk.Stack{Base: stack.Base}, stack.Layers, filepath.Join(t.TempDir(), "m"))
	require.NoError(t, err)
	other := newBase(t)
	want, err := os.ReadFile(other.Path)
	require.NoError(t, err)
	clear(want[mb : mb+128<<10])
	clear(want[2*mb : 2*mb+64<<10])
	over, err := driver.Open(t.Context(), disk.Stack{Base: other}.With(merged), 4*mb, t.TempDir(), 0)
	require.NoError(t, err)
	withVM(t, over, func(vm disktest.VM) {
		require.True(t, bytes.Equal(want[64<<10:], read(t, vm, 64<<10, 4*mb-64<<10)))
	})
}

// TestFlattenOfUnevenBase: a base may have any size.
func TestFlattenOfUnevenBase(t *testing.T) {
	t.Parallel()
	base := disk.Base{Path: filepath.Join(t.TempDir(), "base.raw"), SizeBytes: 3*mb + 4096 + 17}
	content := noise(int(base.SizeBytes))
	require.NoError(t, os.WriteFile(base.Path, content, 0o400))
	flat, err := driver.Flatten(t.Context(), disk.Stack{Base: base}, filepath.Join(t.TempDir(), "flat"))
	require.NoError(t, err)
	got, err := os.ReadFile(flat.Path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))
	live, err := driver.Create(t.Context(), base, 4*mb, t.TempDir(), 0)
	require.NoError(t, err)
	withVM(t, live, func(vm disktest.VM) {
		require.True(t, bytes.Equal(append(content, make([]byte, 4*mb-len(content))...), read(t, vm, 0, 4*mb)))
	})
}

// BenchmarkCreate is the disk's share of a sandbox's start.
func BenchmarkCreate(b *testing.B) {
	base, dir := newBase(b), b.TempDir()
	for b.Loop() {
		if _, err := driver.Create(b.Context(), base, 5*gb, dir, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSeal is the disk's share of a pause of an idle sandbox.
func BenchmarkSeal(b *testing.B) {
	base, dir := newBase(b), b.TempDir()
	for b.Loop() {
		b.StopTimer()
		live, err := driver.Create(b.Context(), base, 5*gb, dir, 0)
		require.NoError(b, err)
		b.StartTimer()
		if _, _, err := driver.Seal(b.Context(), live, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreateOverSeven is the same over the deepest stack.
func BenchmarkCreateOverSeven(b *testing.B) {
	dir := b.TempDir()
	stack := disk.Stack{Base: newBase(b)}
	for i := range disk.MaxDepth - 1 {
		live, err := driver.Open(b.Context(), stack, 5*gb, dir, i)
		require.NoError(b, err)
		stack = seal(b, live)
	}
	for b.Loop() {
		if _, err := driver.Open(b.Context(), stack, 5*gb, dir, 99); err != nil {
			b.Fatal(err)
		}
	}
}
