package dm

import (
	"context"
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
)

// ErrDeferred says that a device could not be removed in time, since somebody has it open, and
// that the kernel removes it when the last one closes it.
var ErrDeferred = errors.New("still open: it is removed when the last user closes it")

// How long Remove waits between tries.
const (
	firstWait   = 5 * time.Millisecond
	longestWait = 200 * time.Millisecond
)

// Remove removes a device. While somebody has it open it tries again until ctx ends, and then
// leaves the removal to the kernel: an error that is ErrDeferred, of kind fault.FailedPrecondition.
// A device that is not there is removed; every other error is returned at once.
func (c *Control) Remove(ctx context.Context, name string) error {
	forget := c.ownNode(name)
	err := c.removeInTime(ctx, name)
	if err == nil {
		return forget()
	}
	return err
}

func (c *Control) removeInTime(ctx context.Context, name string) error {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		_, err := c.remove(name, 0)
		switch {
		case err == nil, errors.Is(err, syscall.ENXIO):
			return nil
		case !errors.Is(err, syscall.EBUSY):
			return err
		}
		select {
		case <-ctx.Done():
			return c.removeLater(name)
		case <-time.After(wait):
		}
	}
}

// removeLater removes a device now or when it is closed.
func (c *Control) removeLater(name string) error {
	info, err := c.remove(name, unix.DM_DEFERRED_REMOVE)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return nil
	case err != nil:
		return err
	case !info.Deferred:
		return nil // it was closed just now
	}
	return &fault.Error{
		Kind: fault.FailedPrecondition, Op: "remove", Object: "device " + name, Err: ErrDeferred,
		Hint: "end the process that has it open",
	}
}

func (c *Control) remove(name string, flags uint32) (Info, error) {
	return c.about(cmdRemove, name, failpoint.Hit("devicemapper.ioctl.remove"), request{flags: flags, event: udevFlags})
}
