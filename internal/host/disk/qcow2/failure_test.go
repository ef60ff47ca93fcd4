package qcow2_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/disktest"
)

// TestFullFileSystem runs the driver on a file system of 2 MiB.
func TestFullFileSystem(t *testing.T) {
	t.Parallel()
	live := create(t, 16*mb)
	withVM(t, live, func(vm disktest.VM) { write(t, vm, noise(3*mb), 8*mb) })
	stack := seal(t, live)
	small := t.TempDir()
	var errs [3]error
	var left []string
	onSmallFileSystem(t, small, func() {
		_, errs[0] = driver.Merge(t.Context(), live.Stack, stack.Layers, filepath.Join(small, "m"))
		_, errs[1] = driver.Flatten(t.Context(), stack, filepath.Join(small, "f"))
		fill(filepath.Join(small, "filler"))
		_, errs[2] = driver.Open(t.Context(), stack, 16*mb, small, 1)
		left = filesIn(t, small)
	})
	for _, err := range errs {
		require.True(t, fault.Is(err, fault.ResourceExhausted), "%v", err)
		require.Contains(t, fault.HintOf(err), "free space")
		require.Contains(t, fault.HintOf(err), small)
	}
	require.Equal(t, []string{"filler"}, left)
}

// fill writes until nothing fits.
func fill(path string) {
	f, err := os.Create(path)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	for _, n := range []int{64 << 10, 4096, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, n))
		}
	}
}

// onSmallFileSystem runs do on a thread whose own mount namespace has a tiny tmpfs at dir: the
// machine never sees the mount, and it goes with the thread.
func onSmallFileSystem(t *testing.T, dir string, do func()) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // For good: the thread is not fit for anything else.
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m")
		}
		if err == nil {
			do()
		}
		done <- err
	}()
	require.NoError(t, <-done, "needs root")
}

// TestCancelLeavesNothing cancels long work in the middle.
func TestCancelLeavesNothing(t *testing.T) {
	t.Parallel()
	live := create(t, 512*mb)
	withVM(t, live, func(vm disktest.VM) { write(t, vm, noise(192*mb), 0) })
	stack := seal(t, live)
	dir := t.TempDir()
	for name, long := range map[string]func(context.Context, string) error{
		"merge": func(ctx context.Context, dst string) error {
			_, err := driver.Merge(ctx, live.Stack, stack.Layers, dst)
			return err
		},
		"flatten": func(ctx context.Context, dst string) error {
			_, err := driver.Flatten(ctx, stack, dst)
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Millisecond)
		err := long(ctx, filepath.Join(dir, name))
		cancel()
		require.Truef(t, fault.Is(err, fault.DeadlineExceeded), "%s: %v", name, err)
	}
	require.Empty(t, filesIn(t, dir))
}

// TestMissingFiles: what is not there is NotFound, and says which file.
func TestMissingFiles(t *testing.T) {
	t.Parallel()
	live := create(t, 8*mb)
	_, err := driver.Create(t.Context(), live.Stack.Base, 8*mb, filepath.Join(t.TempDir(), "none"), 0)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	gone := live
	gone.Path = filepath.Join(t.TempDir(), "disk-3.qcow2")
	_, err = driver.Attach(t.Context(), gone)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.Contains(t, err.Error(), gone.Path)
	_, _, err = driver.Seal(t.Context(), gone, 0, nil)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

// TestSealTakesOwnership: a layer is no longer its VM's to change.
func TestSealTakesOwnership(t *testing.T) {
	t.Parallel()
	live := create(t, 8*mb)
	require.NoError(t, os.Chown(live.Path, 54321, 54321), "needs root")
	stack := seal(t, live)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(stack.Layers[0].Path, &st))
	require.EqualValues(t, os.Geteuid(), st.Uid)
	require.EqualValues(t, 0o400, st.Mode&0o777)
}

// TestSealSwitchIndexMustBeFree: the next disk must not replace the one being sealed.
func TestSealSwitchIndexMustBeFree(t *testing.T) {
	t.Parallel()
	live := create(t, 8*mb)
	called := false
	_, _, err := driver.Seal(t.Context(), live, 0, func(context.Context, disk.Attachment) error {
		called = true
		return nil
	})
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	require.False(t, called)
	require.Equal(t, []string{"disk-0.qcow2"}, filesIn(t, filepath.Dir(live.Path)))
}
