package loop

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstWait   = time.Millisecond
	longestWait = 50 * time.Millisecond
	// ownerWait is how long udev may look at a device before its lock means a user.
	ownerWait = 2 * time.Second
)

// lock takes the exclusive lock of an open file, as soon as it is free; it goes with the last
// descriptor. It waits in tries: a blocked flock could not be cancelled.
func lock(ctx context.Context, file *os.File) error {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// unlock cannot fail on an open file.
func unlock(file *os.File) { _ = unix.Flock(int(file.Fd()), unix.LOCK_UN) }

// own takes the lock of a loop for writing: false when another user has it.
func (d *device) own(ctx context.Context) (bool, error) {
	short, cancel := context.WithTimeout(ctx, ownerWait)
	defer cancel()
	err := lock(short, d.File)
	if short.Err() != nil && ctx.Err() == nil && errors.Is(err, short.Err()) {
		return false, nil
	}
	return err == nil, err
}
