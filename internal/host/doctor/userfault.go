package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's userfaultfd interface, as far as one page needs it.
const (
	uffdioAPI       = 0xc018aa3f
	uffdioRegister  = 0xc020aa00
	uffdioCopy      = 0xc028aa03
	uffdAPI         = 0xaa
	uffdMissing     = 1
	uffdEventFault  = 0x12
	userfaultfdNew  = 0xaa00 // of /dev/userfaultfd
	userfaultfdNode = "/dev/userfaultfd"
)

// userfaultfd serves one page, and looks whether a jailed VMM, which is not root, may have one too.
func (s System) userfaultfd(context.Context) Finding {
	const name = "userfaultfd"
	const hint = "use a kernel with CONFIG_USERFAULTFD (Debian's have it); in a container, allow the system call"
	if err := serveOnePage(); err != nil {
		return warn(name, "no page could be served: "+err.Error()+": Firecracker cannot restore layered memory", hint)
	}
	misc, _ := s.read("proc/misc")
	if hasWord(misc, "userfaultfd") {
		return ok(name, "served a page; jails get a node of "+userfaultfdNode)
	}
	if on, err := s.number("proc/sys/vm/unprivileged_userfaultfd"); err == nil && on == 1 {
		return ok(name, "served a page; unprivileged processes may")
	}
	return warn(name, "root may, a jailed Firecracker may not: there is no "+userfaultfdNode+", and vm.unprivileged_userfaultfd is 0",
		"use Linux 6.1 or newer, or sysctl -w vm.unprivileged_userfaultfd=1, and in /etc/sysctl.d")
}

func hasWord(text, word string) bool {
	for w := range strings.FieldsSeq(text) {
		if w == word {
			return true
		}
	}
	return false
}

// openUserfault prefers the node, which a kernel may have where the call is forbidden.
func openUserfault() (*os.File, error) {
	if node, err := os.OpenFile(userfaultfdNode, os.O_RDWR, 0); err == nil {
		defer node.Close()
		if fd, err := unix.IoctlRetInt(int(node.Fd()), userfaultfdNew); err == nil {
			return os.NewFile(uintptr(fd), "userfaultfd"), nil
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	return os.NewFile(fd, "userfaultfd"), nil
}

// serveOnePage makes the kernel itself fault, as a VM's would: a goroutine that faulted in its own
// code could not be stopped, and would hold up the whole process.
func serveOnePage() error {
	uffd, err := openUserfault()
	if err != nil {
		return err
	}
	defer uffd.Close()
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }()
	addr := uint64(uintptr(unsafe.Pointer(&mem[0])))
	api := [3]uint64{uffdAPI, 0, 0}
	if err := ioctl(uffd, uffdioAPI, unsafe.Pointer(&api)); err != nil {
		return fmt.Errorf("agree on its version: %w", err)
	}
	register := [4]uint64{addr, uint64(page), uffdMissing, 0}
	if err := ioctl(uffd, uffdioRegister, unsafe.Pointer(&register)); err != nil {
		return fmt.Errorf("register a page: %w", err)
	}
	return touchAndServe(uffd, mem, addr)
}

// touchAndServe lets a pipe's write read the page, and answers with one of known content.
func touchAndServe(uffd *os.File, mem []byte, addr uint64) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(mem[:1])
		written <- errors.Join(err, w.Close())
	}()
	content := make([]byte, len(mem))
	content[0] = 0x5a
	err = servePage(uffd, content, addr)
	if err != nil {
		_ = uffd.Close() // wakes the writer, with a page of zeros
	}
	if err = errors.Join(err, <-written); err != nil {
		return err
	}
	var got [1]byte
	if _, err := r.Read(got[:]); err != nil {
		return err
	}
	if got[0] != content[0] {
		return errors.New("the page has other content than was served")
	}
	return nil
}

const faultWait = 10_000 // ms; the fault is there at once, but on a host that is very busy

func servePage(uffd *os.File, content []byte, addr uint64) error {
	ready := []unix.PollFd{{Fd: int32(uffd.Fd()), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
	n, err := unix.Poll(ready, faultWait)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(ready, faultWait)
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return errors.New("no page fault was reported")
	}
	var event [32]byte
	if _, err := unix.Read(int(uffd.Fd()), event[:]); err != nil {
		return fmt.Errorf("read a page fault: %w", err)
	}
	if event[0] != uffdEventFault {
		return fmt.Errorf("the kernel reports event %#x, not a page fault", event[0])
	}
	arg := [5]uint64{addr, uint64(uintptr(unsafe.Pointer(&content[0]))), uint64(len(content)), 0, 0}
	if err := ioctl(uffd, uffdioCopy, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("serve the page: %w", err)
	}
	return nil
}

func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}
