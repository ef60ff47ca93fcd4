package network

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// TestVethNamespace: a runtime finds in it what it takes over, and nothing else.
func TestVethNamespace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opt := w.options()
	m := w.manager(opt)
	s := acquire(t, m, "sb1", Veth)
	path, err := s.Namespace()
	require.NoError(t, err)
	require.Equal(t, nsDir+"/roost-"+opt.Installation+"-1p", path)
	_, err = s.Tap()
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	far, err := openNamespace(path)
	require.NoError(t, err)
	defer func() { _ = far.close() }()
	in(t, far, func() error {
		links, err := netlink.LinkList()
		require.NoError(t, err)
		require.Len(t, links, 2)
		for _, l := range links {
			require.NotZero(t, l.Attrs().Flags&net.FlagUp, l.Attrs().Name)
		}
		eth0, err := netlink.LinkByName("eth0")
		require.NoError(t, err)
		require.Equal(t, GuestMAC.String(), eth0.Attrs().HardwareAddr.String())
		require.Equal(t, MTU, eth0.Attrs().MTU)
		addrs, err := netlink.AddrList(eth0, netlink.FAMILY_ALL)
		require.NoError(t, err)
		require.Len(t, addrs, 1, "no IPv6 address")
		require.Equal(t, GuestPrefix.String(), addrs[0].IPNet.String())
		routes, err := netlink.RouteGet(net.ParseIP(siteA))
		require.NoError(t, err)
		require.True(t, routes[0].Gw.Equal(GatewayAddr.AsSlice()))
		near, err := netlink.NeighList(eth0.Attrs().Index, netlink.FAMILY_V4)
		require.NoError(t, err)
		require.Len(t, near, 1)
		require.Equal(t, netlink.NUD_PERMANENT, near[0].State)
		require.Equal(t, GatewayMAC.String(), near[0].HardwareAddr.String())
		forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		require.Equal(t, "0", strings.TrimSpace(string(forward)))
		return err
	})
	tap := acquire(t, m, "sb2", Tap)
	_, err = tap.Namespace()
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	require.NoError(t, m.Release(t.Context(), s))
	_, err = s.Namespace()
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = m.Acquire(t.Context(), "sb3", "bridge")
	require.True(t, fault.Is(err, fault.Invalid), err)
}

func TestPoolHasOneKind(t *testing.T) {
	t.Parallel()
	for _, kind := range []PortKind{Tap, Veth} {
		w := newWorld(t)
		m := pooled(t, w, 1, kind)
		ready := m.pool[0]
		other := acquire(t, m, "other", map[PortKind]PortKind{Tap: Veth, Veth: Tap}[kind])
		require.NotSame(t, ready, other)
		require.Same(t, ready, acquire(t, m, "sb1", kind))
	}
}

// takeOver does what runsc does when it starts: it takes the address, and the routes with it.
func takeOver(t *testing.T, g *guest) {
	t.Helper()
	in(t, g.ns, func() error {
		link, err := netlink.LinkByName(guestName)
		if err != nil {
			return err
		}
		return netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(GuestPrefix)})
	})
}

// TestAdoptAfterTakeOver: what a runtime does to its end does not matter to an agent.
func TestAdoptAfterTakeOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opt := w.options()
	m := w.manager(opt)
	s := acquire(t, m, "sb1", Veth)
	path, err := s.Namespace()
	require.NoError(t, err)
	takeOver(t, w.guest(s))
	m.Stop()
	m2 := w.manager(opt)
	require.NoError(t, m2.Collect(t.Context(), map[int]string{s.Index(): "sb1"}))
	adopted, err := m2.Adopt(t.Context(), s.Index(), "sb1")
	require.NoError(t, err)
	require.Equal(t, Veth, adopted.Port())
	again, err := adopted.Namespace()
	require.NoError(t, err)
	require.Equal(t, path, again)
	require.NoError(t, m2.Release(t.Context(), adopted))
	require.Empty(t, namespacesOf(opt.Installation))
}

// TestPacketSocketReachesNothingDenied: frames as runsc sends them, past every rule of the
// namespace that it lives in, meet the slot's.
func TestPacketSocketReachesNothingDenied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(w.options())
	s, neighbour := acquire(t, m, "sb1", Veth), acquire(t, m, "sb2", Veth)
	g := w.guest(s)
	wire := packetSocket(t, g.ns, guestName, unix.SOCK_RAW)
	takeOver(t, g)
	_, own := uplink(m.Subnet(), s.Index())
	_, other := uplink(m.Subnet(), neighbour.Index())
	denied := []string{metadataAddr, lanPeer, hostPrivate, hostPublic, "10.1.2.3", "172.20.0.5", "100.100.100.200", "127.0.0.1",
		own.Addr().String(), other.Addr().String(), GatewayAddr.String(), "224.0.0.1", "255.255.255.255"}
	atHost := sniff(t, w.host, names(m.opt.Installation).link(s.Index()))
	for _, addr := range denied {
		for _, flags := range []byte{0, tcpSYN} {
			require.NoError(t, g.send(frame(GuestAddr, netip.MustParseAddr(addr), flags)))
		}
	}
	require.NoError(t, g.send(frame(GuestAddr, netip.MustParseAddr(siteA), 0)))
	awaitFrame(t, wire, netip.MustParseAddr(siteA)) // so all before it have been decided
	requireSeen(t, w.seen, siteA)
	requireSeen(t, atHost, siteA)
	for _, addr := range denied {
		require.Zero(t, w.seen.to(addr), "a packet to %s got out", addr)
		require.Zero(t, atHost.to(addr), "a packet to %s got to the host", addr)
	}
	require.NoError(t, s.SetPolicy(t.Context(), Policy{Internet: InternetNone}))
	require.NoError(t, g.send(frame(GuestAddr, netip.MustParseAddr(siteA), 0)))
	require.NoError(t, s.SetPolicy(t.Context(), Policy{}))
	require.NoError(t, g.send(frame(GuestAddr, netip.MustParseAddr(siteB), 0)))
	requireSeen(t, w.seen, siteB)
	require.Equal(t, 1, w.seen.to(siteA), "the policy holds for frames of an open flow")
}

// requireSeen waits for one packet to an address, and so for all that came before it.
func requireSeen(t *testing.T, s *sniffer, addr string) {
	t.Helper()
	require.Eventually(t, func() bool { return s.to(addr) == 1 }, 30*time.Second, time.Millisecond, addr)
}

// awaitFrame is the next UDP frame from an address.
func awaitFrame(t *testing.T, wire *os.File, from netip.Addr) {
	t.Helper()
	require.NoError(t, wire.SetReadDeadline(time.Now().Add(30*time.Second)))
	buf := make([]byte, 65600)
	for {
		n, err := wire.Read(buf)
		require.NoError(t, err, "no answer from %s", from)
		if p := parseFrame(buf[:n]); p.from == from && p.proto == unix.IPPROTO_UDP {
			return
		}
	}
}

// source is where a packet comes from, and its protocol.
type source struct {
	from  netip.Addr
	proto byte
}

func parseFrame(frame []byte) source {
	if len(frame) < 14+20 {
		return source{}
	}
	return source{netip.AddrFrom4([4]byte(frame[14+12:])), frame[14+9]}
}
