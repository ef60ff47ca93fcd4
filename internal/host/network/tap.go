package network

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The tap's flags. They must be the same each time it is opened, by whomever: QEMU and
// Firecracker expect the vnet header.
const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// nobodyElse owns a tap that no VMM opens by itself. A tap without an owner may be opened by
// every uid in its namespace.
const nobodyElse = 0

// makeTap makes the persistent tap in the namespace of the calling thread.
func makeTap() error {
	f, err := openTap(nobodyElse)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	err = control(f, func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) })
	if err != nil {
		return fmt.Errorf("keep tap %s: %w", portName, err)
	}
	return nil
}

// giveTap lets processes of a uid, and no others but root's, attach to the tap of the calling
// thread's namespace.
func giveTap(uid int) error {
	f, err := openTap(uid)
	if err != nil {
		return err
	}
	return f.Close()
}

// openTap attaches a new descriptor to the tap of the calling thread's namespace, making the
// tap when there is none, and gives the tap to a uid: whoever had it before has it no more.
func openTap(owner int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(portName)
	if err != nil {
		return nil, err
	}
	req.SetUint16(tapFlags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("attach to tap %s: %w", portName, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("give tap %s to uid %d: %w", portName, owner, err)
	}
	return os.NewFile(uintptr(fd), portName), nil
}
