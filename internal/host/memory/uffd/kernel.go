package uffd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and structures of include/uapi/linux/userfaultfd.h, on 64-bit Linux.
const (
	ioctlWake     = 0x8010AA02 // _IOR(0xAA, 0x02, struct uffdio_range)
	ioctlCopy     = 0xC028AA03 // _IOWR(0xAA, 0x03, struct uffdio_copy)
	ioctlZeropage = 0xC020AA04 // _IOWR(0xAA, 0x04, struct uffdio_zeropage)
)

type rangeArg struct{ start, length uint64 }

type copyArg struct {
	dst, src, length, mode uint64
	done                   int64
}

type zeroArg struct {
	rangeArg
	mode uint64
	done int64
}

// Events of a message, and what a fault says of itself.
const (
	eventFault  = 0x12
	eventFork   = 0x13
	eventRemove = 0x15

	faultProtect = 1 << 1
	faultMinor   = 1 << 2
)

// message is struct uffd_msg. a, b and c are, of a fault, its flags, address and thread; of a
// remove, where it begins and ends; of a fork, the new descriptor.
type message struct {
	event   uint8
	_       [7]uint8
	a, b, c uint64
}

const messageSize = int(unsafe.Sizeof(message{}))

// userfault is the descriptor of a userfaultfd.
type userfault int

// copyIn puts src at dst and wakes who waits there. It may do only a part: what is done is true
// whatever the error. EEXIST and EAGAIN come with nothing done.
func (u userfault) copyIn(dst uint64, src []byte) (done int, err error) {
	arg := copyArg{dst: dst, src: uint64(uintptr(unsafe.Pointer(&src[0]))), length: uint64(len(src))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), ioctlCopy, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(src)
	return outcome(errno, arg.done, len(src))
}

// zeroIn is copyIn of zeros, which cost no memory until they are written.
func (u userfault) zeroIn(dst uint64, length int) (done int, err error) {
	arg := zeroArg{rangeArg: rangeArg{dst, uint64(length)}}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), ioctlZeropage, uintptr(unsafe.Pointer(&arg)))
	return outcome(errno, arg.done, length)
}

func outcome(errno unix.Errno, done int64, whole int) (int, error) {
	switch {
	case errno == 0:
		return whole, nil
	case done > 0: // a part: the next call says why it ended there
		return int(done), nil
	default:
		return 0, errno
	}
}

// wake lets who waits in a range try again.
func (u userfault) wake(start, length uint64) error {
	arg := rangeArg{start, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), ioctlWake, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// linkOfUserfault is what /proc/PID/fd calls one; kernels since 5.14 put it in brackets too.
const linkOfUserfault = "anon_inode:[userfaultfd]"

// checkUserfault checks that a descriptor from outside is what it should be.
func checkUserfault(f *os.File) error {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(link, linkOfUserfault) {
		return fmt.Errorf("the descriptor is %q, not a userfaultfd", link)
	}
	return nil
}

// takeUserfault is checkUserfault, and makes it never block. It is f's number, not one of its own:
// the caller keeps f.
func takeUserfault(f *os.File) (userfault, error) {
	if err := checkUserfault(f); err != nil {
		return 0, err
	}
	return userfault(f.Fd()), unix.SetNonblock(int(f.Fd()), true)
}

// poller waits for descriptors; a negative one is left out.
type poller []unix.PollFd

func newPoller(fds ...int) poller {
	list := make(poller, len(fds))
	for i, fd := range fds {
		list[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	return list
}

// wait returns when one is ready.
func (p poller) wait() error {
	for {
		_, err := unix.Poll(p, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		return nil
	}
}

func (p poller) ready(i int) bool { return p[i].Revents != 0 }
