package sandboxtest

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/network"
)

const threadNS = "/proc/thread-self/ns/net"

// namespace is a network namespace without a name.
type namespace struct{ file *os.File }

func newNamespace() (*namespace, error) {
	ns := &namespace{}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if ns.file, err = os.Open(threadNS); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns, err
}

// openNamespace opens one that has a name.
func openNamespace(path string) (*namespace, error) {
	f, err := os.Open(path)
	return &namespace{file: f}, err
}

// up brings eth0 up or down.
func (n *namespace) up(up bool) error {
	return n.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

func (n *namespace) path() string { return fmt.Sprintf("/proc/self/fd/%d", n.file.Fd()) }

func (n *namespace) close() error { return n.file.Close() }

func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread that is thrown away with its namespace.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// nic makes a guest's network card in the namespace: a second tap, which wire joins to the
// slot's.
func (n *namespace) nic() (card *os.File, err error) {
	err = n.do(func() error {
		if card, err = openTap("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: network.GuestAddr.AsSlice(), Mask: net.CIDRMask(network.GuestPrefix.Bits(), 32)}}
		for _, step := range []func() error{
			func() error { return netlink.LinkSetHardwareAddr(link, network.GuestMAC) },
			func() error { return netlink.AddrAdd(link, addr) },
			func() error { return netlink.LinkSetUp(link) },
			func() error { return netlink.RouteAdd(&netlink.Route{Gw: network.GatewayAddr.AsSlice()}) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	return card, err
}

// listen opens the guest's port.
func (n *namespace) listen() (l net.Listener, err error) {
	err = n.do(func() error {
		l, err = net.Listen("tcp", net.JoinHostPort(network.GuestAddr.String(), strconv.Itoa(guestclient.Port)))
		return err
	})
	return l, err
}

// openTap opens a tap with the flags of a slot's.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
