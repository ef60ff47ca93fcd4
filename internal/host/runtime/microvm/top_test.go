package microvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/runtime"
)

// stackIn makes a stack of empty layers, the n-th of them in dirs[n].
func stackIn(t *testing.T, r *Runtime, dirs []string) disk.Stack {
	t.Helper()
	base := filepath.Join(t.TempDir(), "base")
	require.NoError(t, os.WriteFile(base, make([]byte, disk.SizeUnit), 0o400))
	stack := disk.Stack{Base: disk.Base{Path: base, SizeBytes: disk.SizeUnit}}
	for i, dir := range dirs {
		live, err := r.disk.Open(t.Context(), stack, disk.SizeUnit, dir, i)
		require.NoError(t, err)
		layer, _, err := r.disk.Seal(t.Context(), live, 0, nil)
		require.NoError(t, err)
		stack = stack.With(layer)
	}
	return stack
}

func repeat(dir string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = dir
	}
	return out
}

// What is merged is the sandbox's own; of what it shares with others only if nothing else
// would help, and never the template's layer.
func TestShallow(t *testing.T) {
	t.Parallel()
	r := New(nil, qcow2.New())
	template, source, own := t.TempDir(), t.TempDir(), t.TempDir()
	var forks []string // each a fork of the one before
	for range disk.MaxDepth - 1 {
		forks = append(forks, t.TempDir())
	}
	for name, c := range map[string]struct {
		dirs []string
		kept int
	}{
		"own":          {append([]string{template}, repeat(own, 7)...), 1},
		"booted cold":  {repeat(own, 8), 0},
		"a fork's":     {append(append([]string{template}, repeat(source, 3)...), repeat(own, 4)...), 4},
		"fork of fork": {append([]string{template}, forks...), 1},
	} {
		stack := stackIn(t, r, c.dirs)
		got, err := r.shallow(t.Context(), stack, own, 77)
		require.NoError(t, err, name)
		require.Equal(t, stack.Layers[:c.kept], got.Layers[:c.kept], name)
		require.Len(t, got.Layers, c.kept+1, name)
		require.Equal(t, filepath.Join(own, "merged-77"), got.Layers[c.kept].Path)
		for _, l := range stack.Layers {
			require.FileExists(t, l.Path, name)
		}
	}
}

// An adopted VM is on the disk that its VMM says, however old its record is.
func TestFindTop(t *testing.T) {
	t.Parallel()
	r := New(nil, qcow2.New())
	dir := t.TempDir()
	stack := stackIn(t, r, []string{t.TempDir()})
	live, err := r.disk.Open(t.Context(), stack, disk.SizeUnit, dir, 5)
	require.NoError(t, err)
	rec := instanceRecord{Live: live, DiskIndex: 5}
	try := func(path string) (*top, error) {
		at, err := os.Stat(path)
		require.NoError(t, err)
		out := &top{}
		err = r.findTop(t.Context(), out, runtime.Spec{DiskIndex: 5}, rec, at)
		require.NoError(t, errors.Join(out.letGo(t.Context(), r)))
		return out, err
	}
	find := func(path string) *top {
		out, err := try(path)
		require.NoError(t, err)
		require.NoError(t, r.sumOwn(t.Context(), out.live)) // as the next capture does
		return out
	}
	require.Equal(t, &top{live: live, index: 5}, find(live.Path))

	// Captured, and not thawed yet: the next disk is there, and not in use.
	at := &top{live: live, index: 5}
	layer, _, err := r.disk.Seal(t.Context(), live, 0, nil)
	require.NoError(t, err)
	require.NoError(t, r.prepareNext(t.Context(), at, layer))
	got := find(live.Path)
	require.Equal(t, live, got.live)
	require.True(t, got.sealed)

	// Thawed since.
	require.Equal(t, &top{live: *at.next, index: 5 + tops}, find(at.next.Path))
	rec.DiskIndex = 0 // a record of a version that kept none
	require.Equal(t, &top{live: *at.next, index: 5 + tops}, find(at.next.Path))

	// Neither can be.
	_, err = try(stack.Layers[0].Path)
	require.ErrorContains(t, err, "the VM writes to another one")
	_, _, err = r.disk.Seal(t.Context(), *at.next, 0, nil)
	require.NoError(t, err)
	_, err = try(live.Path)
	require.ErrorContains(t, err, "a capture stands on one above it")
}

// Discard removes live disks; what a capture may have stays.
func TestRemoveLive(t *testing.T) {
	t.Parallel()
	r := New(nil, qcow2.New())
	dir := t.TempDir()
	spec := runtime.Spec{DiskDir: dir, DiskIndex: 2}
	for i, mode := range []os.FileMode{0o400, 0o400, 0o600, 0o600} {
		require.NoError(t, os.WriteFile(r.disk.LivePath(dir, 2+i*tops), nil, mode))
	}
	other := filepath.Join(dir, fmt.Sprintf("merged-%d", 2))
	require.NoError(t, os.WriteFile(other, nil, 0o600))
	for range 2 {
		require.NoError(t, r.removeLive(t.Context(), spec))
		left, err := filepath.Glob(dir + "/*")
		require.NoError(t, err)
		require.ElementsMatch(t, []string{r.disk.LivePath(dir, 2), r.disk.LivePath(dir, 2+tops), other}, left)
	}
}
