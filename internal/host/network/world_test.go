package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses of the test's world. The internet answers at every address there is, so that
// what a guest does not reach was stopped on the way.
const (
	hostPublic   = "203.0.113.1"
	hostPrivate  = "192.168.77.1"
	lanPeer      = "192.168.77.20"
	router       = "203.0.113.254"
	siteA        = "192.0.2.10"
	siteB        = "198.51.100.10"
	siteC        = "203.0.113.10"
	metadataAddr = "169.254.169.254"
	webPort      = 8080
	udpPort      = 8081
)

// world is an internet and a host, each a namespace.
type world struct {
	t        *testing.T
	internet *namespace
	host     *namespace
	zone     *zone
	seen     *sniffer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	require.Zero(t, os.Geteuid(), "these tests make network namespaces: run them as root")
	w := &world{t: t, internet: newNS(t), host: newNS(t)}
	w.connect()
	w.seen = sniff(t, w.internet, "inet0")
	w.zone = serveZone(t, w.internet)
	for _, ns := range []*namespace{w.internet, w.host} {
		serveTCP(t, ns, webPort)
	}
	serveTCP(t, w.host, 22)
	for _, site := range []string{siteA, siteB, siteC} {
		serveUDP(t, w.internet, site)
	}
	serveUDP(t, w.host, hostPublic)
	serveUDP(t, w.host, hostPrivate)
	return w
}

// newNS makes a namespace without a name; it ends with the test.
func newNS(t testing.TB) *namespace {
	t.Helper()
	ns, err := anonymousNS()
	require.NoError(t, err)
	t.Cleanup(func() { _ = ns.close() })
	in(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

func anonymousNS() (*namespace, error) {
	ns := &namespace{}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns.file, err = os.Open(threadNS)
		return err
	})
	return ns, err
}

func in(t testing.TB, ns *namespace, f func() error) {
	t.Helper()
	require.NoError(t, ns.do(f))
}

func nsPath(ns *namespace) string {
	return fmt.Sprintf("/proc/self/fd/%d", ns.file.Fd())
}

func (w *world) connect() {
	in(w.t, w.internet, func() error {
		for _, pair := range [][2]string{{"inet0", "eth0"}, {"lan1", "lan0"}} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = pair[0]
			veth := &netlink.Veth{LinkAttrs: attrs, PeerName: pair[1], PeerNamespace: netlink.NsFd(int(w.host.file.Fd()))}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
		}
		if err := giveAddrs("lan1", lanPeer+"/24"); err != nil {
			return err
		}
		if err := giveAddrs("inet0", router+"/24", siteC+"/24"); err != nil {
			return err
		}
		if err := giveAddrs("lo", siteA+"/32", siteB+"/32"); err != nil {
			return err
		}
		return answerEverywhere()
	})
	in(w.t, w.host, func() error {
		// A new namespace begins with the machine's own setting.
		if err := writeSysctl("ipv4/ip_forward", "0"); err != nil {
			return err
		}
		if err := giveAddrs("lan0", hostPrivate+"/24"); err != nil {
			return err
		}
		if err := giveAddrs("eth0", hostPublic+"/24"); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(router)})
	})
}

// answerEverywhere makes every address without a better route a local one.
func answerEverywhere() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_MAIN})
}

func giveAddrs(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a))}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// serveTCP greets with the address that was dialled, then echoes.
func serveTCP(t testing.TB, ns *namespace, port int) {
	t.Helper()
	var l net.Listener
	in(t, ns, func() (err error) {
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp4", ":"+strconv.Itoa(port))
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// A peer whose network is gone never says goodbye.
			context.AfterFunc(ctx, func() { _ = c.Close() })
			conns.Go(func() { greet(c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); cancel(); conns.Wait() })
}

func greet(c net.Conn) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = fmt.Fprintf(c, "%s %s\n", c.LocalAddr(), c.RemoteAddr())
	_, _ = io.Copy(c, c)
}

func serveUDP(t *testing.T, ns *namespace, addr string) {
	t.Helper()
	var pc net.PacketConn
	in(t, ns, func() (err error) {
		pc, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp4", net.JoinHostPort(addr, strconv.Itoa(udpPort)))
		return err
	})
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { _ = pc.Close(); done.Wait() })
}

// dial connects from a namespace and reads the greeting.
func dial(ns *namespace, addr string, port int) (string, error) {
	return dialWithin(30*time.Second, ns, addr, port)
}

// dialDenied is a dial that should fail: where packets are dropped, it is given up soon.
func dialDenied(ns *namespace, addr string, port int) (string, error) {
	return dialWithin(time.Second, ns, addr, port)
}

func dialWithin(limit time.Duration, ns *namespace, addr string, port int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	to := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
	c, err := dialTCP(ctx, ns, to)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(limit))
	buf := make([]byte, 128)
	n, err := c.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// echoUDP sends a datagram and waits for it to come back.
func echoUDP(ns *namespace, addr string, port int, wait time.Duration) error {
	var c net.Conn
	err := ns.do(func() (err error) {
		c, err = new(net.Dialer).DialContext(context.Background(), "udp4", net.JoinHostPort(addr, strconv.Itoa(port)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 16))
	return err
}

// installation makes an id that no other test has: names under /run/netns are the machine's.
func installation() string {
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789"
	id := []byte("t000")
	for i := 1; i < len(id); i++ {
		id[i] = chars[rand.IntN(len(chars))]
	}
	return string(id)
}

// options are a manager's in this world, with a pool only when the test wants one.
func (w *world) options() Options {
	return Options{Installation: installation(), StateDir: w.t.TempDir(), HostNS: nsPath(w.host), PoolSize: -1,
		Resolvers: []string{router}, DNSTimeout: time.Second, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil))}
}

// manager starts one and uninstalls it at the end.
func (w *world) manager(opt Options) *Manager {
	w.t.Helper()
	m, err := New(opt)
	require.NoError(w.t, err)
	require.NoError(w.t, m.Start(w.t.Context()))
	w.t.Cleanup(func() { require.NoError(w.t, m.Uninstall(context.Background())) })
	return m
}

// sniffer remembers which IPv4 packets arrive on a link.
type sniffer struct {
	mu    sync.Mutex
	flows map[string]int // "src>dst"
}

func sniff(t *testing.T, ns *namespace, link string) *sniffer {
	t.Helper()
	s := &sniffer{flows: map[string]int{}}
	f := packetSocket(t, ns, link, unix.SOCK_DGRAM)
	var done sync.WaitGroup
	done.Go(func() { s.run(f) })
	t.Cleanup(func() { _ = f.Close(); done.Wait() })
	return s
}

// packetSocket reads the IPv4 packets that arrive on a link, and writes frames to it.
func packetSocket(t testing.TB, ns *namespace, link string, form int) *os.File {
	t.Helper()
	var f *os.File
	in(t, ns, func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		proto := uint16(unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8)
		fd, err := unix.Socket(unix.AF_PACKET, form|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto))
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "packets")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: l.Attrs().Index})
	})
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func (s *sniffer) run(f *os.File) {
	buf := make([]byte, 65600)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		if n < 20 {
			continue
		}
		from, to := netip.AddrFrom4([4]byte(buf[12:16])), netip.AddrFrom4([4]byte(buf[16:20]))
		s.mu.Lock()
		s.flows[from.String()+">"+to.String()]++
		s.mu.Unlock()
	}
}

// to counts packets to an address from anything but the internet itself.
func (s *sniffer) to(addr string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := 0
	for flow, n := range s.flows {
		if strings.HasSuffix(flow, ">"+addr) {
			sum += n
		}
	}
	return sum
}

// from lists all sources seen.
func (s *sniffer) from() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for flow := range s.flows {
		src, _, _ := strings.Cut(flow, ">")
		out = append(out, src)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// zone is the world's DNS: names and their records.
type zone struct {
	mu      sync.Mutex
	records map[string][]dns.RR
	asked   int
	down    bool
}

func serveZone(t *testing.T, ns *namespace) *zone {
	t.Helper()
	z := &zone{records: map[string][]dns.RR{}}
	var pc net.PacketConn
	var l net.Listener
	in(t, ns, func() (err error) {
		if pc, err = new(net.ListenConfig).ListenPacket(context.Background(), "udp4", router+":53"); err != nil {
			return err
		}
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp4", router+":53")
		return err
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: z}, {Listener: l, Handler: z}} {
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(ended); _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); <-ended })
	}
	return z
}

func (z *zone) add(t *testing.T, lines ...string) {
	t.Helper()
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		require.NoError(t, err)
		name := rr.Header().Name
		z.records[name] = append(z.records[name], rr)
	}
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	if z.down {
		return
	}
	a := new(dns.Msg).SetReply(q)
	for _, rr := range z.records[q.Question[0].Name] {
		if rr.Header().Rrtype == q.Question[0].Qtype {
			a.Answer = append(a.Answer, rr)
		}
	}
	if _, known := z.records[q.Question[0].Name]; !known {
		a.Rcode = dns.RcodeNameError
	}
	if w.LocalAddr().Network() == "udp" {
		a.Truncate(dnsUDPSize)
	}
	_ = w.WriteMsg(a)
}

// ask sends a DNS question from a guest.
func (g *guest) ask(network, name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, qtype)
	var c net.Conn
	err := g.ns.do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 2 * time.Second}).DialContext(context.Background(), network, DNSAddr.String()+":53")
		return err
	})
	if err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: c}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	return conn.ReadMsg()
}

// census is what an installation leaves on the machine and in its host namespace.
// Namespaces are not in it: every package's are in one folder; namespacesOf has one installation's.
func (w *world) census() []string {
	w.t.Helper()
	var out []string
	in(w.t, w.host, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			out = append(out, "link "+l.Attrs().Name)
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, r := range routes {
			out = append(out, "route "+r.String())
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		for _, tb := range tables {
			out = append(out, "table "+tb.Name)
		}
		forward, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		out = append(out, "ip_forward "+strings.TrimSpace(string(forward)))
		return err
	})
	return out
}

// slotsOf are the numbers of an installation's slots, by their namespaces.
func slotsOf(inst string) map[int]bool {
	out := map[int]bool{}
	for _, name := range namespacesOf(inst) {
		n, _ := names(inst).parseNamespace(name)
		out[n] = true
	}
	return out
}

// names of this installation's namespaces.
func namespacesOf(inst string) []string {
	var out []string
	entries, _ := os.ReadDir(nsDir)
	for _, e := range entries {
		if _, ok := names(inst).parseNamespace(e.Name()); ok {
			out = append(out, e.Name())
		}
	}
	return out
}
