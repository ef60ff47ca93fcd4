package microvm

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
)

const (
	ownMB    = 1
	ownBytes = ownMB << 20
)

// ownDriver is a VMM that makes its own memory; it starts nothing.
type ownDriver struct{ vmm.Driver }

func (ownDriver) Name() string { return "own" }

func (ownDriver) Capabilities() vmm.Capabilities {
	return vmm.Capabilities{OwnMemory: true, BlockDrive: true, OpensTap: true, ELFKernel: true}
}

// ownVM is a VM of it that has written some pages.
type ownVM struct {
	vmm.VM
	dirty  string
	killed bool
}

func (v *ownVM) Handle() vmm.Handle { return vmm.Handle{MemoryMB: ownMB} }

func (v *ownVM) Dirty(context.Context) (*os.File, error) { return os.Open(v.dirty) }

func (v *ownVM) Kill(context.Context) error {
	v.killed = true
	return os.Remove(v.dirty) // it goes with the VM
}

// written is a sparse file in which these pages are data.
func written(t *testing.T, pages map[int]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dirty")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(ownBytes))
	for n, b := range pages {
		_, err := f.WriteAt(bytes.Repeat([]byte{b}, memory.PageSize), int64(n)*memory.PageSize)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	return path
}

func ownInstance(dirty string, m *ram) (*instance, *ownVM) {
	vm := &ownVM{dirty: dirty}
	return &instance{rt: New(ownDriver{}, qcow2.New()), vm: vm, ram: m}, vm
}

// ownTemplate is the memory of a template, saved as that of a VM that was booted.
func ownTemplate(t *testing.T) *ram {
	t.Helper()
	in, vm := ownInstance(written(t, map[int]byte{1: 1, 2: 2, 3: 3}), &ram{})
	in.template = true
	rec := captureRecord{MemoryMB: ownMB}
	n, err := in.saveTemplate(t.Context(), t.TempDir(), &rec)
	require.NoError(t, err)
	require.True(t, vm.killed, "it ends")
	require.Equal(t, int64(3*memory.PageSize), n)
	m, err := ownMemory(t.Context(), runtime.Spec{}, rec)
	require.NoError(t, err)
	require.Equal(t, vmm.Memory{Path: rec.MemoryBase}, m.memory)
	require.NotZero(t, m.id)
	info, err := os.Stat(rec.MemoryBase)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o444), info.Mode().Perm(), "VMs read it under their uids")
	return m
}

// save is one capture of an instance; what it was restored from next.
func save(t *testing.T, in *instance, parent *runtime.Capture) (captureRecord, *origin, runtime.Capture) {
	t.Helper()
	dir := t.TempDir()
	rec := captureRecord{MemoryMB: ownMB, MemoryBase: in.ram.base}
	_, err := in.saveMemory(t.Context(), dir, runtime.CaptureOptions{Parent: parent}, &rec, &runtime.CaptureStats{})
	require.NoError(t, err)
	raw, err := json.Marshal(rec.relativeTo(dir))
	require.NoError(t, err)
	return rec, &origin{Map: rec.MemoryMap, Layers: rec.Layers}, runtime.Capture{Dir: dir, Record: raw}
}

// pageOf is the first byte of a saved page, and whether anything is said of it.
func pageOf(t *testing.T, o *origin, n int64) (byte, bool) {
	t.Helper()
	m, err := memory.ReadMap(o.Map)
	require.NoError(t, err)
	p := m.At(n)
	if p.Kind != memory.Data {
		return 0, p.Kind == memory.Zero
	}
	raw, err := os.ReadFile(o.Layers[p.Layer])
	require.NoError(t, err)
	return raw[p.Index*memory.PageSize], true
}

// What is saved stands on what the VM was restored from, by names where that is the sandbox's own, by
// links where it is another's; and on what it was restored from only, however often it is saved.
func TestOwnMemoryIsSavedOverItsOrigin(t *testing.T) {
	t.Parallel()
	base := ownTemplate(t)
	in, _ := ownInstance(written(t, map[int]byte{2: 20, 7: 70, 9: 0}), base)
	rec, first, c := save(t, in, nil)
	require.Len(t, rec.Layers, 1)
	for n, want := range map[int64]byte{2: 20, 7: 70, 9: 0} {
		got, said := pageOf(t, first, n)
		require.True(t, said)
		require.Equal(t, want, got)
	}
	_, said := pageOf(t, first, 1)
	require.False(t, said, "the template's")

	restored := &ram{base: base.base, id: base.id, origin: first}
	in, _ = ownInstance(written(t, map[int]byte{3: 30}), restored)
	rec, second, _ := save(t, in, &c)
	require.Equal(t, first.Layers[0], rec.Layers[0], "named where it lies")
	require.Len(t, rec.Layers, 2)
	got, _ := pageOf(t, second, 2)
	require.Equal(t, byte(20), got)

	rec, other, _ := save(t, in, nil)
	require.Len(t, rec.Layers, 2)
	require.NotEqual(t, first.Layers[0], rec.Layers[0])
	require.True(t, sameFile(first.Layers[0], rec.Layers[0]), "a link of its own")
	got, _ = pageOf(t, other, 2)
	require.Equal(t, byte(20), got)
	require.NoError(t, other.verify(t.Context()))
}

// With as many layers as there may be, they are merged into the new capture.
func TestOwnMemoryIsMerged(t *testing.T) {
	t.Parallel()
	base := ownTemplate(t)
	m := &ram{base: base.base, id: base.id}
	var parent *runtime.Capture
	for i := range memory.MaxLayers {
		in, _ := ownInstance(written(t, map[int]byte{10 + i: byte(i + 1)}), m)
		rec, next, c := save(t, in, parent)
		require.Len(t, rec.Layers, i+1)
		m, parent = &ram{base: base.base, id: base.id, origin: next}, &c
	}
	in, _ := ownInstance(written(t, map[int]byte{10: 99}), m)
	rec, last, c := save(t, in, parent)
	require.Len(t, rec.Layers, 2)
	for _, path := range rec.Layers {
		require.Equal(t, c.Dir, filepath.Dir(path))
	}
	for i := range memory.MaxLayers {
		want := byte(i + 1)
		if i == 0 {
			want = 99
		}
		got, _ := pageOf(t, last, int64(10+i))
		require.Equal(t, want, got)
	}
}

// Damage of anything is told before a VM is started.
func TestOwnMemoryIsVerified(t *testing.T) {
	t.Parallel()
	base := ownTemplate(t)
	in, _ := ownInstance(written(t, map[int]byte{2: 20}), base)
	rec, _, _ := save(t, in, nil)
	for _, path := range []string{rec.MemoryBase, rec.MemoryMap, rec.Layers[0]} {
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		aside := path + ".aside"
		require.NoError(t, os.Rename(path, aside))
		refuses := func() {
			_, err := ownMemory(t.Context(), runtime.Spec{RunDir: t.TempDir()}, rec)
			require.Equal(t, fault.DataLoss, fault.KindOf(err), "%s: %v", path, err)
			require.NotEmpty(t, fault.HintOf(err), path)
		}
		refuses()
		bad := bytes.Clone(whole)
		bad[min(2*memory.PageSize, len(bad)/2)] ^= 1
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		refuses()
		require.NoError(t, os.Rename(aside, path))
	}
	_, err := ownMemory(t.Context(), runtime.Spec{}, captureRecord{MemoryMB: ownMB})
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "no memory at all: %v", err)
	require.NoError(t, os.Remove(rec.MemoryMap))
	in, _ = ownInstance(written(t, nil), &ram{base: base.base, id: base.id, origin: &origin{rec.MemoryMap, rec.Layers}})
	_, err = in.saveMemory(t.Context(), t.TempDir(), runtime.CaptureOptions{}, &captureRecord{}, &runtime.CaptureStats{})
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "what it stands on is gone: %v", err)
}

func TestKernelAsTheVMMBootsIt(t *testing.T) {
	t.Parallel()
	r := New(ownDriver{}, qcow2.New())
	require.True(t, r.Capabilities().OpensTap)
	path, err := r.kernel(runtime.Template{Kernel: "bz", KernelELF: "elf"})
	require.NoError(t, err)
	require.Equal(t, "elf", path)
	_, err = r.kernel(runtime.Template{Kernel: "bz"})
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.NotEmpty(t, fault.HintOf(err))
	require.Equal(t, fault.Invalid, fault.KindOf(Fits(ownDriver{}, qcow2.New())), "it takes no chains")
}
