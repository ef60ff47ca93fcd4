package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Control is the open control node. It is safe for concurrent use.
type Control struct {
	file  *os.File
	calls [lastCommand + 1]atomic.Uint64
}

// Open opens the control node. Without device-mapper in the kernel it fails with
// fault.FailedPrecondition.
func Open() (*Control, error) {
	file, err := openControl()
	if err != nil {
		return nil, err
	}
	c := &Control{file: file}
	if _, err := c.Version(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return c, nil
}

// Close closes the control node; devices stay as they are.
func (c *Control) Close() error { return c.file.Close() }

// Calls tells how many ioctls were made, by name ("create", "load", …).
func (c *Control) Calls() map[string]uint64 {
	calls := map[string]uint64{}
	for nr := range c.calls {
		if n := c.calls[nr].Load(); n > 0 {
			calls[commandName(uint32(nr))] = n
		}
	}
	return calls
}

// Version is the version of the kernel's device-mapper interface, "4.47.0".
func (c *Control) Version() (string, error) {
	r, err := c.call(cmdVersion, "", request{})
	if err != nil {
		return "", err
	}
	v := r.header.Version
	return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]), nil
}

// TargetVersion is a target type that the kernel has.
type TargetVersion struct{ Name, Version string }

// Targets lists the target types that are loaded: "linear" and "error" always are, "snapshot" and
// "zero" are modules of their own, which Load makes the kernel load where it can.
func (c *Control) Targets() ([]TargetVersion, error) {
	r, err := c.call(cmdListVersions, "", request{})
	if err != nil {
		return nil, err
	}
	return parseVersions(r.data)
}

// call makes an ioctl about the device of that name, with a larger buffer as long as the
// kernel has more to say.
func (c *Control) call(cmd uint32, name string, req request) (reply, error) {
	req.name = name
	for size := firstBuffer; ; size *= 2 {
		buf, err := req.encode(size)
		if err != nil {
			return reply{}, failed(err, cmd, name)
		}
		if err := c.ioctl(cmd, buf); err != nil {
			return reply{}, failed(err, cmd, name)
		}
		r, err := decode(buf)
		if err != nil {
			return reply{}, failed(err, cmd, name)
		}
		if r.header.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			return r, nil
		}
		if size >= largestBuffer {
			return reply{}, failed(fmt.Errorf("the answer is larger than %d bytes", size), cmd, name)
		}
	}
}

// ioctl hands buf to the kernel. A signal may interrupt the wait of a suspend (the Go runtime
// sends them); nothing has happened then and buf is as it was.
func (c *Control) ioctl(cmd uint32, buf []byte) error {
	conn, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	errno := syscall.EINTR
	err = conn.Control(func(fd uintptr) {
		for errno == syscall.EINTR {
			c.calls[cmd].Add(1)
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(commandCode(cmd)), uintptr(unsafe.Pointer(&buf[0])))
		}
	})
	switch {
	case err != nil:
		return err
	case errno != 0:
		return errno
	}
	return nil
}

// failed gives err the operation, the device and a kind.
func failed(err error, cmd uint32, name string) error {
	object := "device " + name
	if name == "" {
		object = "device-mapper"
	}
	f := &fault.Error{Kind: fault.KindOf(err), Op: commandName(cmd), Object: object, Err: err, Hint: fault.HintOf(err)}
	switch {
	case errors.Is(err, syscall.ENXIO):
		f.Kind = fault.NotFound
	case errors.Is(err, syscall.EBUSY) && (cmd == cmdCreate || cmd == cmdRename):
		f.Kind, f.Hint = fault.AlreadyExists, "its name or UUID is taken"
	case errors.Is(err, syscall.EBUSY):
		f.Kind, f.Hint = fault.FailedPrecondition, "it, or a device below it, is in use"
	case errors.Is(err, fs.ErrPermission):
		f.Kind, f.Hint = fault.PermissionDenied, "device-mapper is for root (CAP_SYS_ADMIN)"
	case errors.Is(err, syscall.EINVAL):
		f.Kind, f.Hint = fault.Invalid, "the kernel's log says why (dmesg); modprobe -a dm_snapshot dm_zero where targets are missing"
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOSPC):
		f.Kind = fault.ResourceExhausted
	}
	return f
}
