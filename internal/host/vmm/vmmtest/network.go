package vmmtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The guest's side and the tests' side of the tap. The hardware address of the tap is the same
// in every namespace, as a restored guest still has it in its neighbour table.
const (
	guestAddr = "192.0.2.2"
	guestMAC  = "02:00:00:00:00:02"
	hostAddr  = "192.0.2.1/24"
	hostMAC   = "02:00:00:00:00:01"
)

// network is a namespace with a tap. It has no name: it is gone with its last descriptor.
type network struct {
	ns netns.NsHandle
	// tap is open, for a driver that is given it so; else path names the namespace, in which the
	// tap is its owner's to open.
	tap  *os.File
	path string
}

const tapName = "tap0"

func newNetwork(t testing.TB, byName bool, owner int) *network {
	t.Helper()
	n := &network{}
	var err error
	inThread(func() {
		if n.ns, err = netns.New(); err == nil {
			err = n.addTap()
		}
	})
	require.NoError(t, err, "make a network namespace (root is needed)")
	t.Cleanup(func() {
		if n.tap != nil {
			_ = n.tap.Close()
		}
		_ = n.ns.Close()
	})
	if byName {
		require.NoError(t, n.giveTo(owner))
	}
	return n
}

// giveTo lets go of the tap, which stays for its owner to open.
func (n *network) giveTo(owner int) error {
	fd := int(n.tap.Fd())
	err := errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1), n.tap.Close())
	n.tap, n.path = nil, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.ns))
	return err
}

// tapName is of a tap that the VMM opens itself.
func (n *network) tapName() string {
	if n.path == "" {
		return ""
	}
	return tapName
}

// inThread runs f on a thread of its own, which ends with it: its namespace is never used for
// anything else.
func inThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

func (n *network) addTap() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	n.tap = os.NewFile(uintptr(fd), tapName)
	req, err := unix.NewIfreq(tapName)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		return err
	}
	mac, _ := net.ParseMAC(hostMAC)
	if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(hostAddr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	guest, _ := net.ParseMAC(guestMAC)
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(guestAddr), HardwareAddr: guest,
	})
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// dial connects to the guest once; the socket belongs to the namespace for good.
func (n *network) dial(timeout time.Duration) (conn net.Conn, err error) {
	inThread(func() {
		if err = netns.Set(n.ns); err == nil {
			conn, err = net.DialTimeout("tcp", guestAddr+":7000", timeout)
		}
	})
	return conn, err
}
