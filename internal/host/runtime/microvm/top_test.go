package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
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

// What a deep stack was merged into for the disk that a VM went on to is what that stands on.
func TestFindTopOverMerged(t *testing.T) {
	t.Parallel()
	r := New(nil, qcow2.New())
	dir := t.TempDir()
	stack := stackIn(t, r, append([]string{t.TempDir()}, repeat(dir, disk.MaxDepth-2)...))
	const index = 50
	live, err := r.disk.Open(t.Context(), stack, disk.SizeUnit, dir, index)
	require.NoError(t, err)
	at := &top{live: live, index: index}
	layer, _, err := r.disk.Seal(t.Context(), live, 0, nil)
	require.NoError(t, err)
	require.NoError(t, r.prepareNext(t.Context(), at, layer))
	require.Len(t, at.next.Stack.Layers, 3, "shared, merged, layer")
	info, err := os.Stat(at.next.Path)
	require.NoError(t, err)
	got := &top{}
	rec := instanceRecord{Live: live, DiskIndex: index} // of before it went on
	require.NoError(t, r.findTop(t.Context(), got, runtime.Spec{DiskIndex: index}, rec, info))
	require.NoError(t, r.sumOwn(t.Context(), got.live))
	require.Equal(t, *at.next, got.live)
}

// cleaning is a VMM that cleans up.
type cleaning struct {
	vmm.Driver
	dir string
}

func (c *cleaning) Clean(_ context.Context, dir string) error {
	c.dir = dir
	return nil
}

// Nobody else looks for the devices of disks whose VM has ended without its agent, least of all of
// those that a capture has.
func TestReapLetsGoOfDisks(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Runtime, runtime.Spec) error{
		"reap":    func(r *Runtime, s runtime.Spec) error { return r.Reap(t.Context(), s) },
		"discard": func(r *Runtime, s runtime.Spec) error { return r.Discard(t.Context(), s) },
	} {
		disks, cleaner := &clinging{Driver: qcow2.New()}, &cleaning{}
		r := New(cleaner, disks)
		spec := runtime.Spec{RunDir: "/run/it", DiskDir: t.TempDir(), DiskIndex: 2, UID: 1<<30 + 7}
		var want []string
		for i, mode := range []os.FileMode{0o400, 0o400, 0o600, 0} {
			path := r.disk.LivePath(spec.DiskDir, 2+i*tops)
			if mode != 0 { // the last one's file has gone
				require.NoError(t, os.WriteFile(path, nil, mode))
			}
			want = append(want, path)
		}
		require.NoError(t, end(r, spec), name)
		require.Subset(t, disks.detached, want, name)
		require.Equal(t, "/run/it", cleaner.dir, name)
		disks.path = want[0]
		require.ErrorIs(t, end(r, spec), errClings, name)
	}
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
