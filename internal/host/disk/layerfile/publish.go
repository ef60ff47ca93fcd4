package layerfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Publish writes an immutable file: without a name until it is whole and synced, then at dst,
// where nothing may be yet (os.ErrExist).
func Publish(ctx context.Context, dst string, write func(context.Context, *os.File) error) error {
	if _, err := os.Lstat(dst); err == nil {
		return os.ErrExist // Known before the work; the link decides in the end.
	}
	f, err := os.OpenFile(filepath.Dir(dst), os.O_RDWR|unix.O_TMPFILE, 0o400)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // It was synced before it got its name.
	if err := inBackground(func() error { return write(ctx, f) }); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return link(f, dst)
}

// link gives the file its name, durably or not at all.
func link(f *os.File, dst string) error {
	unnamed := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err := unix.Linkat(unix.AT_FDCWD, unnamed, unix.AT_FDCWD, dst, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(dst)); err != nil {
		return errors.Join(err, Remove(dst))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// niceness is how much merging and flattening yield to VMs and requests.
const niceness = 10

// inBackground runs fn on a thread at low priority. The thread's priority is put back rather
// than the thread ended: processes die with the thread that started them if they asked for
// a signal on their parent's death, and any of the agent's threads may have started some.
func inBackground(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, niceness) // Only politeness; work without it.
		err := fn()
		if unix.Setpriority(unix.PRIO_PROCESS, 0, 0) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
