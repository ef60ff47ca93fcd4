package microvm

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/runtime"
)

const compactPages = 64

// privateMemory is a mapping of this process as a VM's memory is one of its VMM.
func privateMemory(t *testing.T) ([]byte, memory.Mapping) {
	t.Helper()
	f, err := memory.NewTemplate(t.Name(), compactPages*memory.PageSize)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, memory.Seal(f))
	b, err := unix.Mmap(int(f.Fd()), 0, compactPages*memory.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(b)) })
	return b, memory.Mapping{PID: os.Getpid(), Addr: uint64(uintptr(unsafe.Pointer(&b[0]))), Bytes: int64(len(b))}
}

// deepMemory is a capture with as many layers of memory as there may be, and the memory itself.
func deepMemory(t *testing.T) (runtime.Capture, []byte) {
	t.Helper()
	mem, m := privateMemory(t)
	dir := t.TempDir()
	rec := captureRecord{MemoryMB: 1, MemoryMap: filepath.Join(dir, "memory.map")}
	var saved *memory.Map
	for i := range memory.MaxLayers {
		copy(mem[i*memory.PageSize:], bytes.Repeat([]byte{byte(i + 1)}, 3*memory.PageSize))
		clear(mem[(i+20)*memory.PageSize:][:memory.PageSize])
		var err error
		saved, _, err = memory.CaptureFile(t.Context(), m, saved, dir, true)
		require.NoError(t, err)
		rec.Layers = append(rec.Layers, filepath.Join(dir, saved.LayerName(i)))
	}
	require.NoError(t, memory.WriteMap(rec.MemoryMap, saved))
	raw, err := json.Marshal(rec.relativeTo(dir))
	require.NoError(t, err)
	return runtime.Capture{Dir: dir, Record: raw}, bytes.Clone(mem)
}

func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		out[e.Name()] = string(raw)
	}
	return out
}

func TestCompactMergesMemory(t *testing.T) {
	t.Parallel()
	r := New(nil, qcow2.New())
	c, want := deepMemory(t)
	before := filesIn(t, c.Dir)
	raw, changed, err := r.Compact(t.Context(), runtime.Spec{}, c)
	require.NoError(t, err)
	require.True(t, changed)
	after := filesIn(t, c.Dir)
	require.Len(t, after, len(before)+2, "a layer and a map")
	for name, content := range before {
		require.Equal(t, content, after[name], name)
	}
	c.Record = raw
	rec, err := parseCapture(c)
	require.NoError(t, err)
	require.Len(t, rec.Layers, 1)
	mem, m := privateMemory(t)
	require.NoError(t, applyPages(t.Context(), rec, m))
	require.True(t, bytes.Equal(want, mem))
	_, changed, err = r.Compact(t.Context(), runtime.Spec{}, c)
	require.NoError(t, err)
	require.False(t, changed)
}

// Memory that is damaged is left for Restore to refuse: its disk may be wanted.
func TestCompactLeavesDamagedMemory(t *testing.T) {
	t.Parallel()
	r := New(nil, qcow2.New())
	for _, damage := range []func(rec captureRecord) error{
		func(rec captureRecord) error { return os.Remove(rec.MemoryMap) },
		func(rec captureRecord) error { return os.Remove(rec.Layers[3]) },
		func(rec captureRecord) error {
			return os.WriteFile(rec.Layers[2], make([]byte, 3*memory.PageSize), 0o600)
		},
	} {
		c, _ := deepMemory(t)
		rec, err := parseCapture(c)
		require.NoError(t, err)
		require.NoError(t, damage(rec))
		before := filesIn(t, c.Dir)
		_, changed, err := r.Compact(t.Context(), runtime.Spec{}, c)
		require.NoError(t, err)
		require.False(t, changed)
		require.Equal(t, before, filesIn(t, c.Dir))
	}
}
