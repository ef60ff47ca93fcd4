package network

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// As in linux/ethtool.h.
type ethtoolValue struct{ command, data uint32 }

type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer // *ethtoolValue
	_    [16]byte       // the rest of struct ifreq
}

// sendWhole turns the offloads of a link in the calling thread's namespace off. A veth has no
// wire, so the kernel would hand packets over as they are: checksums not yet written, TCP
// segments of up to 64 KB not yet cut. A kernel on the other side understands that by what it
// knows beside the packet; one who reads a packet socket gets only the bytes. The other way
// needs nothing: who writes to a packet socket gives whole frames, or says what is missing in
// a vnet header.
//
// The price: a reader that asks for vnet headers, as runsc does, would understand large packets,
// and now takes each segment by itself.
func sendWhole(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for _, command := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_STXCSUM} {
		value := &ethtoolValue{command: command}
		req := &ethtoolRequest{data: unsafe.Pointer(value)}
		copy(req.name[:unix.IFNAMSIZ-1], link)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(req)))
		if errno != 0 {
			return fmt.Errorf("turn offload %#x of %s off: %w", command, link, errno)
		}
	}
	return nil
}
