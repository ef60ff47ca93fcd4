package microvm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/runtime"
)

// outside is where the template's files of a sample capture lie.
func outside(root string) string { return root + "-outside" }

// place makes the files of a sample capture, all but the template's below root.
func place(t *testing.T, root string) runtime.Capture {
	t.Helper()
	dir := filepath.Join(root, "x/captures/2")
	rec := captureRecord{
		VCPUs: 1, MemoryMB: 512,
		State: dir + "/device.state", MemoryBase: outside(root) + "/warm/memory", MemoryMap: dir + "/memory.map",
		Layers: []string{root + "/x/captures/1/memory.layer", dir + "/memory.layer"},
		Disk: disk.Stack{
			Base:   disk.Base{Path: outside(root) + "/images/disk", SizeBytes: 1 << 30},
			Layers: []disk.Layer{{Path: outside(root) + "/warm/disk-0", SizeBytes: 5 << 30}, {Path: root + "/x/disk/disk-3", SizeBytes: 5 << 30, Sum: "s"}},
		},
		DiskBytes: 5 << 30,
	}
	for _, p := range rec.files() {
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o700))
		require.NoError(t, os.WriteFile(p, []byte(p), 0o400))
	}
	raw, err := json.Marshal(rec.relativeTo(dir))
	require.NoError(t, err)
	return runtime.Capture{Dir: dir, Record: raw}
}

func newDir(t *testing.T, path string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(path, 0o700))
	return path
}

// contents are what the record's files hold, by their place in it; "" of what is missing.
func contents(t *testing.T, c runtime.Capture) []string {
	t.Helper()
	rec, err := parseCapture(c)
	require.NoError(t, err)
	var out []string
	for _, p := range rec.files() {
		raw, _ := os.ReadFile(p)
		out = append(out, string(raw))
	}
	return out
}

// What is below the root is linked, once, whatever becomes of the source; the rest keeps its path.
func TestLink(t *testing.T) {
	t.Parallel()
	r, root := New(nil, qcow2.New()), t.TempDir()
	c := place(t, root)
	want := contents(t, c)
	snapshot := newDir(t, filepath.Join(root, ".snapshots/.tmp-s"))
	require.NoError(t, os.WriteFile(snapshot+"/manifest.json", []byte("mine"), 0o600))
	var linked runtime.Capture
	for range 2 { // what is linked already is the same
		raw, err := r.Link(t.Context(), c, snapshot, root)
		require.NoError(t, err)
		linked = runtime.Capture{Dir: snapshot, Record: raw}
		require.Equal(t, want, contents(t, linked))
	}
	final := filepath.Join(root, ".snapshots/s")
	require.NoError(t, os.Rename(snapshot, final))
	linked.Dir = final
	rec, err := parseCapture(linked)
	require.NoError(t, err)
	require.Equal(t, []string{
		final + "/device.state", outside(root) + "/warm/memory", final + "/memory.map", outside(root) + "/images/disk",
		final + "/memory-0.layer", final + "/memory-1.layer", outside(root) + "/warm/disk-0", final + "/disk-1.layer",
	}, rec.files())
	require.Equal(t, "s", rec.Disk.Layers[1].Sum)

	require.NoError(t, os.RemoveAll(filepath.Join(root, "x")))
	require.Equal(t, want, contents(t, linked), "its source is gone")
	mine, err := os.ReadFile(final + "/manifest.json")
	require.NoError(t, err)
	require.Equal(t, "mine", string(mine))
}

// In a directory that was linked into before, no file is taken for another.
func TestLinkIntoItself(t *testing.T) {
	t.Parallel()
	r, root := New(nil, qcow2.New()), t.TempDir()
	c := place(t, root)
	want := contents(t, c)
	stale := []byte("an earlier position's")
	require.NoError(t, os.WriteFile(filepath.Join(c.Dir, "disk-1.layer"), stale, 0o400))
	for range 2 {
		raw, err := r.Link(t.Context(), c, c.Dir, root)
		require.NoError(t, err)
		linked := runtime.Capture{Dir: c.Dir, Record: raw}
		require.Equal(t, want, contents(t, linked))
		rec, err := parseCapture(linked)
		require.NoError(t, err)
		require.Equal(t, c.Dir+"/2-disk-1.layer", rec.Disk.Layers[1].Path)
		require.Equal(t, c.Dir+"/memory.layer", rec.Layers[1], "it was there")
	}
	left, err := os.ReadFile(filepath.Join(c.Dir, "disk-1.layer"))
	require.NoError(t, err)
	require.Equal(t, stale, left)
}

// A record names files by the name that the data directory had then. Below the root they are
// linked all the same, or they would go with their sandbox.
func TestLinkByAnotherName(t *testing.T) {
	t.Parallel()
	r, root := New(nil, qcow2.New()), t.TempDir()
	other := root + "-link"
	require.NoError(t, os.Symlink(root, other))
	names := []string{root, other}
	if os.Geteuid() == 0 {
		bind := t.TempDir()
		require.NoError(t, unix.Mount(root, bind, "", unix.MS_BIND, ""))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(bind, 0)) })
		names = append(names, bind)
	}
	c := place(t, root)
	want := contents(t, c)
	linked := 0
	for _, then := range names {
		for _, now := range names {
			old := runtime.Capture{Dir: c.Dir, Record: bytes.ReplaceAll(c.Record, []byte(root+"/"), []byte(then+"/"))}
			linked++
			dir := newDir(t, filepath.Join(now, "new", fmt.Sprint(linked)))
			for range 2 {
				raw, err := r.Link(t.Context(), old, dir, now)
				require.NoError(t, err)
				got := runtime.Capture{Dir: dir, Record: raw}
				require.Equal(t, want, contents(t, got))
				require.NotContains(t, string(raw), "x/disk/")
				require.NotContains(t, string(raw), "x/captures/")
				old = got
			}
		}
	}
	require.NoError(t, os.RemoveAll(filepath.Join(root, "x")))
	require.NoError(t, os.Remove(other))
}

// A Link that fails leaves no name behind, and says what is lost.
func TestLinkFails(t *testing.T) {
	t.Parallel()
	r, root := New(nil, qcow2.New()), t.TempDir()
	c := place(t, root)
	dir := newDir(t, filepath.Join(root, "new"))
	require.NoError(t, os.Remove(filepath.Join(root, "x/disk/disk-3")))
	_, err := r.Link(t.Context(), c, dir, root)
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "disk-3")
	require.NotEmpty(t, fault.HintOf(err))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)

	// What nobody can find by the name that it has might lie below the root.
	c = place(t, root)
	require.NoError(t, os.Remove(outside(root)+"/warm/disk-0"))
	_, err = r.Link(t.Context(), c, dir, root)
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "disk-0")
}
