package vmmtest

import (
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
	ns  netns.NsHandle
	tap *os.File
}

func newNetwork(t testing.TB) *network {
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
		_ = n.tap.Close()
		_ = n.ns.Close()
	})
	return n
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
	n.tap = os.NewFile(uintptr(fd), "tap0")
	req, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return err
	}
	link, err := netlink.LinkByName("tap0")
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
