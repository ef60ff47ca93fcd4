package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	goruntime "runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/runtime"
)

// The addresses of every slot, see package network: a restored guest keeps them.
const (
	guestAddr     = "10.171.0.2"
	guestPrefix   = guestAddr + "/30"
	guestMAC      = "02:72:6f:73:74:02"
	gatewayAddr   = "10.171.0.1"
	gatewayPrefix = gatewayAddr + "/30"
	gatewayMAC    = "02:72:6f:73:74:01"
	tapName       = "tap0"
	vethName      = "veth0"
)

// slot is a router namespace with the port of one start: a tap, or a veth whose other end
// lies in a second namespace. Neither has a name: they are gone with their last descriptor
// and user.
type slot struct {
	router, far netns.NsHandle
	port        runtime.Port
}

func newSlot(t testing.TB, caps runtime.Capabilities, owner int) *slot {
	t.Helper()
	s := &slot{router: netns.None(), far: netns.None(), port: runtime.Port{MAC: guestMAC}}
	t.Cleanup(s.close)
	make := s.makeTap
	switch {
	case caps.TakesNamespace:
		make = s.makeVeth
	case caps.OpensTap:
		make = func() error { return errors.Join(s.makeTap(), s.giveTap(owner)) }
	}
	err := inThread(func() (err error) {
		if caps.TakesNamespace {
			if s.far, err = netns.New(); err != nil {
				return err
			}
		}
		if s.router, err = netns.New(); err != nil {
			return err
		}
		return make()
	})
	require.NoError(t, err, "make a network namespace")
	return s
}

func (s *slot) close() {
	if s.port.Tap != nil {
		_ = s.port.Tap.Close()
	}
	for _, ns := range []*netns.NsHandle{&s.router, &s.far} {
		if ns.IsOpen() {
			_ = ns.Close()
		}
	}
}

// inThread runs f on a thread of its own, which ends with it: its namespace is never used for
// anything else.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func (s *slot) makeTap() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	s.port.Tap = os.NewFile(uintptr(fd), tapName)
	req, err := unix.NewIfreq(tapName)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	return s.gateway(tapName)
}

// giveTap lets go of the tap, which stays for its owner to open.
func (s *slot) giveTap(owner int) error {
	tap := s.port.Tap
	if tap == nil {
		return nil // it was not made
	}
	s.port.Tap, s.port.TapName = nil, tapName
	s.port.Namespace = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.router))
	fd := int(tap.Fd())
	return errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1), tap.Close())
}

func (s *slot) makeVeth() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = vethName
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.far))}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	if err := s.gateway(vethName); err != nil {
		return err
	}
	s.port.Namespace = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.far))
	return inThread(func() error {
		if err := netns.Set(s.far); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetUp(lo), setUp("eth0", guestMAC, guestPrefix)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gatewayAddr)})
	})
}

// gateway makes the router's end of the port what a guest takes it for.
func (s *slot) gateway(name string) error {
	if err := setUp(name, gatewayMAC, gatewayPrefix); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	mac, _ := net.ParseMAC(guestMAC)
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(guestAddr), HardwareAddr: mac,
	})
}

func setUp(name, hardware, prefix string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(hardware)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetHardwareAddr(link, mac), netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}

// dial reaches the guest; the socket belongs to the router namespace for good.
func (s *slot) dial(ctx context.Context, port int) (conn net.Conn, err error) {
	err = inThread(func() error {
		if err := netns.Set(s.router); err != nil {
			return err
		}
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(guestAddr, strconv.Itoa(port)))
		return err
	})
	return conn, err
}

// users are the processes, but this one, that live in one of the namespaces.
func (s *slot) users(t testing.TB) []int {
	t.Helper()
	var inodes []uint64
	for _, ns := range []netns.NsHandle{s.router, s.far} {
		if ns.IsOpen() {
			var st unix.Stat_t
			require.NoError(t, unix.Fstat(int(ns), &st))
			inodes = append(inodes, st.Ino)
		}
	}
	return processes(t, func(pid int) bool {
		var st unix.Stat_t
		if pid == os.Getpid() || unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil {
			return false
		}
		for _, ino := range inodes {
			if ino == st.Ino {
				return true
			}
		}
		return false
	})
}

// processes lists those that f picks.
func processes(t testing.TB, f func(pid int) bool) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && f(pid) {
			out = append(out, pid)
		}
	}
	return out
}
