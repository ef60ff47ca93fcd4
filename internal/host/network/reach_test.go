package network

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestGuestReachesOutside(t *testing.T) {
	t.Parallel()
	forEachPort(t, testGuestReachesOutside)
}

func testGuestReachesOutside(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", kind)
	g := w.guest(s)
	for _, site := range []string{siteA, siteB, siteC} {
		greeting, err := dial(g.ns, site, webPort)
		require.NoError(t, err, site)
		require.True(t, strings.HasPrefix(greeting, site), greeting)
		require.Contains(t, greeting, " "+hostPublic+":", "the outside sees the host's address")
		require.NoError(t, echoUDP(g.ns, site, udpPort, 10*time.Second), site)
	}
	stats, err := s.Stats()
	require.NoError(t, err)
	require.Positive(t, stats.RxBytes)
	require.Positive(t, stats.TxBytes)
}

func TestGuestReachesNothingDenied(t *testing.T) {
	t.Parallel()
	forEachPort(t, testGuestReachesNothingDenied)
}

func testGuestReachesNothingDenied(t *testing.T, kind PortKind) {
	w := newWorld(t)
	opt := w.options()
	opt.DeniedCIDRs = []string{"198.51.100.0/28", "198.51.100.8/29"} // overlapping, siteB inside
	m := w.manager(opt)
	g := w.guest(acquire(t, m, "sb1", kind))
	denied := append(Denied(), netip.MustParsePrefix("198.51.100.0/28"))
	for _, p := range denied {
		for _, s := range spans([]netip.Prefix{p}) {
			for _, addr := range []netip.Addr{fromUint(s.first), fromUint(s.last)} {
				requireUnreachable(t, w, g, addr.String())
			}
		}
	}
	for _, addr := range []string{metadataAddr, "10.1.2.3", lanPeer, "172.20.0.5", "100.100.100.200"} {
		requireUnreachable(t, w, g, addr) // before the control, whose packets would be counted
		_, err := dial(w.host, addr, webPort)
		require.NoError(t, err, "control: %s answers the host", addr)
	}
	for _, addr := range []string{"9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "169.253.255.255", "169.255.0.0",
		"172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
		"223.255.255.255", "1.0.0.0", "126.255.255.255", "198.51.100.16"} {
		_, err := dial(g.ns, addr, webPort)
		require.NoError(t, err, "%s is next to a denied range, not in it", addr)
	}
}

// requireUnreachable is about TCP and UDP, and about what gets out, not only what comes back.
func requireUnreachable(t *testing.T, w *world, g *guest, addr string) {
	t.Helper()
	before := w.seen.to(addr)
	_, err := dialDenied(g.ns, addr, webPort)
	require.Error(t, err, addr)
	require.Error(t, echoUDP(g.ns, addr, udpPort, 100*time.Millisecond), addr)
	require.Equal(t, before, w.seen.to(addr), "packets to %s got out", addr)
}

func TestGuestReachesNothingOfTheHost(t *testing.T) {
	t.Parallel()
	forEachPort(t, testGuestReachesNothingOfTheHost)
}

func testGuestReachesNothingOfTheHost(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	s, neighbour := acquire(t, m, "sb1", kind), acquire(t, m, "sb2", kind)
	g, g2 := w.guest(s), w.guest(neighbour)
	serveTCP(t, g2.ns, webPort)
	hostEnd, slotEnd := uplink(m.Subnet(), s.Index())
	hostEnd2, slotEnd2 := uplink(m.Subnet(), neighbour.Index())
	for _, addr := range []string{hostPublic, hostPrivate, hostEnd.Addr().String()} {
		for _, port := range []int{22, webPort} {
			_, err := dial(w.host, addr, port)
			require.NoError(t, err, "control: %s listens", addr)
			_, err = dialDenied(g.ns, addr, port)
			require.Error(t, err, "%s port %d", addr, port)
		}
		require.Error(t, echoUDP(g.ns, addr, udpPort, 100*time.Millisecond))
	}
	for _, addr := range []string{slotEnd.Addr().String(), hostEnd2.Addr().String(), slotEnd2.Addr().String(), GatewayAddr.String()} {
		_, err := dialDenied(g.ns, addr, webPort)
		require.Error(t, err, addr)
	}
	greeting, err := dial(neighbour.ns, GuestAddr.String(), webPort)
	require.NoError(t, err, "control: the agent reaches its neighbour's server")
	require.Contains(t, greeting, GatewayAddr.String())
	// A host address that came after the slot was made is stopped by the host's own rules.
	in(t, w.host, func() error { return giveAddrs("eth0", "203.0.113.77/32") })
	_, err = dial(w.host, "203.0.113.77", webPort)
	require.NoError(t, err)
	_, err = dialDenied(g.ns, "203.0.113.77", webPort)
	require.Error(t, err)
}

func TestOutsideReachesNoGuest(t *testing.T) {
	t.Parallel()
	forEachPort(t, testOutsideReachesNoGuest)
}

func testOutsideReachesNoGuest(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", kind)
	g := w.guest(s)
	serveTCP(t, g.ns, webPort)
	_, err := dial(s.ns, GuestAddr.String(), webPort)
	require.NoError(t, err, "control: the server is there")
	_, slotEnd := uplink(m.Subnet(), s.Index())
	for _, addr := range []string{GuestAddr.String(), slotEnd.Addr().String()} {
		in(t, w.internet, func() error { return routeVia(addr, hostPublic) })
		_, err := dialDenied(w.internet, addr, webPort)
		require.Error(t, err, addr)
		_, err = dialDenied(w.host, addr, webPort)
		require.Error(t, err, "from the host: %s", addr)
	}
}

func TestSpoofedSourcesStayInside(t *testing.T) {
	t.Parallel()
	forEachPort(t, testSpoofedSourcesStayInside)
}

func testSpoofedSourcesStayInside(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", kind)
	g := w.guest(s)
	require.NoError(t, echoUDP(g.ns, siteA, udpPort, 10*time.Second))
	before := w.seen.to(siteA)
	_, slotEnd := uplink(m.Subnet(), s.Index())
	for _, from := range []string{siteB, hostPublic, hostPrivate, "10.171.0.1", "10.171.0.3", "127.0.0.1", slotEnd.Addr().String(), "0.0.0.0"} {
		for range 3 {
			err := g.send(frame(netip.MustParseAddr(from), netip.MustParseAddr(siteA), 0))
			require.NoError(t, err)
		}
	}
	// TCP out of nowhere is "invalid": NAT does not touch it, so it must not pass.
	for range 3 {
		err := g.send(frame(GuestAddr, netip.MustParseAddr(siteA), tcpStray))
		require.NoError(t, err)
	}
	require.NoError(t, echoUDP(g.ns, siteA, udpPort, 10*time.Second)) // comes after all of those
	require.Equal(t, before+1, w.seen.to(siteA))
	for _, from := range w.seen.from() {
		require.Contains(t, []string{hostPublic, router, siteA, siteB, siteC}, from)
	}
}

// TestHostDropsSpoofedUplink is about a slot that lies, were its own rules gone.
func TestHostDropsSpoofedUplink(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(w.options())
	s, other := acquire(t, m, "sb1", Tap), acquire(t, m, "sb2", Tap)
	in(t, s.ns, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.FlushRuleset()
		return conn.Flush()
	})
	_, own := uplink(m.Subnet(), s.Index())
	_, foreign := uplink(m.Subnet(), other.Index())
	in(t, s.ns, func() error { return giveAddrs("lo", foreign.Addr().String()+"/32", siteB+"/32") })
	require.NoError(t, sendFrom(s.ns, own.Addr().String(), siteA))
	before := w.seen.to(siteA)
	require.Error(t, sendFrom(s.ns, foreign.Addr().String(), siteA))
	require.Error(t, sendFrom(s.ns, siteB, siteA))
	require.Equal(t, before, w.seen.to(siteA))
	_, err := dialDenied(s.ns, hostPublic, webPort)
	require.Error(t, err, "the host drops what comes from slots")
}

func TestPolicyNoneHoldsForOpenFlows(t *testing.T) {
	t.Parallel()
	forEachPort(t, testPolicyNoneHoldsForOpenFlows)
}

func testPolicyNoneHoldsForOpenFlows(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", kind)
	g := w.guest(s)
	serveTCP(t, g.ns, webPort)
	w.zone.add(t, "site.test. 60 IN A "+siteA)
	open := stream(t, g.ns, siteA)
	require.NoError(t, open.echo(10*time.Second))
	require.NoError(t, s.SetPolicy(t.Context(), Policy{Internet: InternetNone}))
	require.Error(t, open.echo(300*time.Millisecond), "a flow that was open is cut")
	requireUnreachable(t, w, g, siteB)
	_, err := g.ask("udp", "site.test.", 1)
	require.Error(t, err)
	_, err = dial(s.ns, GuestAddr.String(), webPort)
	require.NoError(t, err, "the agent still reaches the guest")
	require.NoError(t, s.SetPolicy(t.Context(), Policy{}))
	_, err = dial(g.ns, siteB, webPort)
	require.NoError(t, err)
	require.Error(t, s.SetPolicy(t.Context(), Policy{Internet: 9}))
}

func TestPooledSlotHasItsRules(t *testing.T) {
	t.Parallel()
	forEachPort(t, testPooledSlotHasItsRules)
}

func testPooledSlotHasItsRules(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := pooled(t, w, 1, kind)
	s := m.popPool(kind)
	require.NotNil(t, s)
	defer func() { require.NoError(t, s.remove()) }()
	in(t, s.ns, func() error {
		conn, err := nftables.New()
		require.NoError(t, err)
		chains, err := conn.ListChains()
		require.NoError(t, err)
		policies := map[string]nftables.ChainPolicy{}
		for _, c := range chains {
			if c.Policy != nil {
				policies[c.Name] = *c.Policy
			}
			if c.Name == egress {
				rules, err := conn.GetRules(c.Table, c)
				require.NoError(t, err)
				require.Len(t, rules, 5)
				require.IsType(t, &expr.Verdict{}, rules[4].Exprs[len(rules[4].Exprs)-1])
			}
		}
		for _, name := range []string{"forward", "input", "output"} {
			require.Equal(t, nftables.ChainPolicyDrop, policies[name], name)
		}
		return nil
	})
	g := w.guest(s)
	requireUnreachable(t, w, g, metadataAddr)
	_, err := dial(g.ns, siteA, webPort)
	require.NoError(t, err)
}

// Flags of a TCP segment: one that begins a connection, and one in the middle of none.
const (
	tcpSYN   = 0x02
	tcpStray = 0x01 | 0x10 // FIN, ACK
)

// frame is an Ethernet frame as the guest would send it: a UDP datagram (flags 0) or a TCP
// segment.
func frame(from, to netip.Addr, flags byte) []byte {
	proto := byte(unix.IPPROTO_TCP)
	if flags == 0 {
		proto = unix.IPPROTO_UDP
	}
	payload := make([]byte, 20)
	binary.BigEndian.PutUint16(payload[0:], 40000)
	binary.BigEndian.PutUint16(payload[2:], udpPort)
	if proto == unix.IPPROTO_UDP {
		payload = payload[:12]
		binary.BigEndian.PutUint16(payload[4:], 12)
	} else {
		payload[12], payload[13] = 5<<4, flags
	}
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(payload)))
	src4, dst4 := from.As4(), to.As4()
	copy(ip[12:], src4[:])
	copy(ip[16:], dst4[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	if proto == unix.IPPROTO_TCP {
		pseudo := append(append(append([]byte{}, src4[:]...), dst4[:]...), 0, proto, 0, byte(len(payload)))
		binary.BigEndian.PutUint16(payload[16:], checksum(append(pseudo, payload...)))
	}
	out := append(append(append([]byte{}, GatewayMAC...), GuestMAC...), 0x08, 0x00)
	return append(append(out, ip...), payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
