package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// startTime bounds the jailer's work and Firecracker's start, on a busy host.
const startTime = time.Minute

var errEnded = errors.New("it ended")

// awaitFile waits until dir has a file of the name. gone ends it early.
func awaitFile(ctx context.Context, dir, name string, gone <-chan struct{}) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fault.Wrap(err, "watch", dir)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return fault.Wrap(err, "watch", dir)
	}
	seen := make(chan error, 1)
	go func() { seen <- readUntil(events, filepath.Join(dir, name)) }()
	select {
	case err := <-seen:
		return err
	case <-gone:
		err = errEnded
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = events.Close()
	if readErr := <-seen; readErr == nil { // just in time
		return nil
	}
	return fault.Wrap(err, "wait for", name)
}

// readUntil looks after each event: the file may be older than the watch.
func readUntil(events *os.File, path string) error {
	buf := make([]byte, 4096)
	for {
		if _, err := os.Lstat(path); err == nil {
			return nil
		}
		if _, err := events.Read(buf); err != nil {
			return err
		}
	}
}

// awaitAPI waits until the VMM listens. Its socket exists a moment before that.
func (vm *VM) awaitAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := awaitFile(ctx, vm.jail.root, apiSocket, vm.proc.Done()); err != nil {
		return err
	}
	for {
		conn, err := vm.jail.dial(ctx)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-vm.proc.Done():
			return fault.Wrap(errEnded, "connect to", apiSocket)
		case <-ctx.Done():
			return fault.Wrap(err, "connect to", apiSocket)
		case <-time.After(time.Millisecond):
		}
	}
}
