package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/paths"
)

// otherNames are what a directory is called besides: by a link, and by a bind mount.
func otherNames(t *testing.T, dir string) []string {
	t.Helper()
	link, bind := dir+"-l", dir+"-b"
	require.NoError(t, os.Symlink(dir, link))
	t.Cleanup(func() { require.NoError(t, os.Remove(link)) })
	require.NoError(t, os.Mkdir(bind, 0o700))
	require.NoError(t, unix.Mount(dir, bind, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(bind, unix.MNT_DETACH)); require.NoError(t, os.Remove(bind)) })
	return []string{link, bind}
}

// allFiles are those of a sandbox below disk and captures.
func (h *host) allFiles(name string) []string {
	h.t.Helper()
	dir := h.Data.Sandbox(name)
	var out []string
	for _, top := range []string{dir.Disk(), dir.Captures()} {
		require.NoError(h.t, filepath.WalkDir(top, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			rel, err := filepath.Rel(dir.String(), path)
			out = append(out, rel)
			return err
		}))
	}
	slices.Sort(out)
	return out
}

// A data directory that an agent finds under another name is the same: records hold the old one,
// and nothing that they name is removed.
func TestADataDirectoryOfAnotherName(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		for range 2 {
			h.pause(a)
			h.resume(a)
		}
		used := h.pause(a).Usage
		first := h.Data
		before := h.allFiles(a)
		for _, name := range append(otherNames(t, string(first)), string(first)) {
			h.stop()
			h.Data = paths.Data(name)
			h.Connect()
			h.start()
			require.Equal(t, before, h.allFiles(a), name)
			leaks, err := h.m.Leaks(t.Context(), true)
			require.NoError(t, err)
			require.Empty(t, leaks)
			require.Equal(t, before, h.allFiles(a), name)
			require.Equal(t, used, h.m.usageOf(h.sandbox(a), 3))
		}
		// What really is nobody's goes, by whatever name.
		h.stop()
		h.Data = paths.Data(string(first) + "-l")
		h.Connect()
		h.start()
		stray := filepath.Join(h.Data.Sandbox(a).Disk(), "stray")
		require.NoError(t, os.WriteFile(stray, nil, 0o600))
		h.m.dropUnused(h.sandbox(a))
		require.Equal(t, before, h.allFiles(a))
		h.resume(a)
		require.Equal(t, "kept", h.notes(a))
		h.pause(a)
		require.Less(t, len(h.saved(a, 4).Memory), 5)
		h.resume(a)
		require.Equal(t, "kept", h.notes(a))
		h.destroy(a)
		h.stop()
		h.Data = first
		h.Connect()
		h.start()
		h.empty()
	})
}

// Both names of a file that has two are safe.
func TestPruneSparesEveryNameOfAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept, also, gone := filepath.Join(dir, "a/kept"), filepath.Join(dir, "also"), filepath.Join(dir, "gone")
	require.NoError(t, os.Mkdir(filepath.Dir(kept), 0o700))
	for _, path := range []string{kept, gone} {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}
	require.NoError(t, os.Link(kept, also))
	keep := fileSet{}
	require.NoError(t, keep.add(also))
	require.ErrorIs(t, keep.add(filepath.Join(dir, "none")), os.ErrNotExist)
	require.NoError(t, prune(dir, keep.has))
	require.FileExists(t, kept)
	require.FileExists(t, also)
	require.NoFileExists(t, gone)
	require.True(t, keep.has(gone), "what is not there need not be removed")
}
