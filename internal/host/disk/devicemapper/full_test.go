package devicemapper_test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/cow"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/loop"
)

// smallFileSystem mounts an ext4 of its own.
func smallFileSystem(t *testing.T, size int64) string {
	image, dir := filepath.Join(t.TempDir(), "fs"), t.TempDir()
	require.NoError(t, loop.CreateSparse(image, size, 0o600))
	out, err := exec.CommandContext(t.Context(), "mke2fs", "-q", "-t", "ext4", "-F", image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	ref, err := loop.NewRegistry("roost-test-fs").Acquire(t.Context(), image, false)
	require.NoError(t, err)
	require.NoError(t, unix.Mount(ref.Path, dir, "ext4", 0, ""))
	t.Cleanup(func() {
		require.NoError(t, unix.Unmount(dir, 0))
		require.NoError(t, ref.Release())
	})
	return dir
}

// TestFullFileSystem fills the host's file system under two live disks: the one that needed room is
// lost and says why, the other writes on where it has blocks, and can be sealed.
func TestFullFileSystem(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "full")
	dir := smallFileSystem(t, 64*mb)
	base := newBase(t, 4*mb)
	before := hash(t, base.Path)
	lucky, err := d.Create(t.Context(), base, 128*mb, dir, 0)
	require.NoError(t, err)
	hungry, err := d.Create(t.Context(), base, 128*mb, dir, 1)
	require.NoError(t, err)
	vm, eater := attach(t, d, lucky), attach(t, d, hungry)
	write(t, vm, noise(4*mb), 8*mb)
	require.NoError(t, vm.Flush())
	for at := int64(0); err == nil && at < 128*mb; at += mb {
		_, err = eater.WriteAt(noise(mb), at)
	}
	require.Error(t, err, "the file system holds half of it")

	_, _, err = d.Seal(t.Context(), hungry, 0, nil)
	require.True(t, fault.Is(err, fault.DataLoss), "%v", err)
	require.ErrorContains(t, err, cow.Invalid)
	st, err := os.Stat(hungry.Path)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, st.Mode().Perm())

	data := noise(4 * mb)
	write(t, vm, data, 8*mb)
	require.NoError(t, vm.Flush())
	stack := seal(t, d, lucky)
	require.True(t, bytes.Equal(data, read(t, vm, 8*mb, 4*mb)))
	require.NoError(t, d.Verify(t.Context(), stack.Layers[0]))
	stop(t, d, vm, lucky)
	eater.Kill()
	require.NoError(t, d.Detach(t.Context(), hungry))
	_, err = d.Attach(t.Context(), hungry)
	require.True(t, fault.Is(err, fault.DataLoss), "%v", err)
	require.NoError(t, d.RemoveLive(t.Context(), hungry))
	require.Equal(t, before, hash(t, base.Path))
	census(t, d)
}

func hash(t *testing.T, path string) [sha256.Size]byte {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(b)
}
