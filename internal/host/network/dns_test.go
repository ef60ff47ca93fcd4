package network

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

func TestDNSAnswersAndStrips(t *testing.T) {
	t.Parallel()
	forEachPort(t, testDNSAnswersAndStrips)
}

func testDNSAnswersAndStrips(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	g := w.guest(acquire(t, m, "sb1", kind))
	w.zone.add(t, "site.test. 60 IN A "+siteA, "site.test. 60 IN AAAA 2001:db8::1",
		"mixed.test. 60 IN A "+siteA, "mixed.test. 60 IN A 10.0.0.5", "mixed.test. 60 IN A 169.254.169.254",
		"inside.test. 60 IN A 192.168.1.1", "inside.test. 60 IN AAAA ::ffff:10.0.0.1", "inside.test. 60 IN AAAA fd00::1",
		"inside.test. 60 IN AAAA 64:ff9b::a00:1", "inside.test. 60 IN AAAA ::1",
		"inside.test. 60 IN HTTPS 1 . ipv4hint=10.0.0.1", "site.test. 60 IN HTTPS 1 . ipv4hint="+siteA,
		"site.test. 60 IN TXT hello")
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name    string
			qtype   uint16
			answers int
		}{
			{"site.test.", dns.TypeA, 1},
			{"site.test.", dns.TypeAAAA, 1},
			{"site.test.", dns.TypeTXT, 1},
			{"site.test.", dns.TypeHTTPS, 1},
			{"mixed.test.", dns.TypeA, 1},
			{"inside.test.", dns.TypeA, 0},
			{"inside.test.", dns.TypeAAAA, 0},
			{"inside.test.", dns.TypeHTTPS, 0},
		} {
			a, err := g.ask(network, c.name, c.qtype)
			require.NoError(t, err)
			require.Equal(t, dns.RcodeSuccess, a.Rcode)
			require.Len(t, a.Answer, c.answers, "%s %s over %s", c.name, dns.TypeToString[c.qtype], network)
		}
		a, err := g.ask(network, "nobody.test.", dns.TypeA)
		require.NoError(t, err)
		require.Equal(t, dns.RcodeNameError, a.Rcode)
		a, err = g.ask(network, "site.test.", dns.TypeAXFR)
		require.NoError(t, err)
		require.Equal(t, dns.RcodeRefused, a.Rcode)
	}
	a, err := g.ask("udp", "mixed.test.", dns.TypeA)
	require.NoError(t, err)
	require.Equal(t, siteA, a.Answer[0].(*dns.A).A.String())
}

func TestDNSLargeAnswerComesByTCP(t *testing.T) {
	t.Parallel()
	forEachPort(t, testDNSLargeAnswerComesByTCP)
}

func testDNSLargeAnswerComesByTCP(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	g := w.guest(acquire(t, m, "sb1", kind))
	for i := range 200 {
		w.zone.add(t, fmt.Sprintf("big.test. 60 IN A 198.51.100.%d", i))
	}
	a, err := g.ask("udp", "big.test.", dns.TypeA)
	require.NoError(t, err)
	require.True(t, a.Truncated)
	a.Compress = true // as it was on the wire
	require.LessOrEqual(t, a.Len(), dns.MinMsgSize)
	a, err = g.ask("tcp", "big.test.", dns.TypeA)
	require.NoError(t, err)
	require.False(t, a.Truncated)
	require.Len(t, a.Answer, 200)
}

func TestDNSUpstreamDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log lockedBuffer
	opt := w.options()
	opt.DNSTimeout = 100 * time.Millisecond
	opt.Resolvers = []string{router, "203.0.113.99"}
	opt.Logger = slog.New(slog.NewTextHandler(&log, nil))
	m := w.manager(opt)
	g := w.guest(acquire(t, m, "sb1", Tap))
	w.zone.add(t, "site.test. 60 IN A "+siteA)
	w.zone.setDown(true)
	for range 3 {
		a, err := g.ask("udp", "site.test.", dns.TypeA)
		require.NoError(t, err)
		require.Equal(t, dns.RcodeServerFailure, a.Rcode)
	}
	require.Equal(t, 1, bytes.Count(log.bytes(), []byte("no resolver answered")), "the guest cannot fill the log")
	w.zone.setDown(false)
	a, err := g.ask("udp", "site.test.", dns.TypeA)
	require.NoError(t, err)
	require.Len(t, a.Answer, 1)
}

func TestDNSSecondResolver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opt := w.options()
	opt.DNSTimeout = 100 * time.Millisecond
	opt.Resolvers = []string{"203.0.113.99:53", router + ":53"}
	m := w.manager(opt)
	g := w.guest(acquire(t, m, "sb1", Tap))
	w.zone.add(t, "site.test. 60 IN A "+siteA)
	a, err := g.ask("udp", "site.test.", dns.TypeA)
	require.NoError(t, err)
	require.Len(t, a.Answer, 1)
}

// A guest writes what it likes to the agent's port.
func TestDNSSurvivesBadMessages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(w.options())
	g := w.guest(acquire(t, m, "sb1", Tap))
	w.zone.add(t, "site.test. 60 IN A "+siteA)
	query, err := new(dns.Msg).SetQuestion("site.test.", dns.TypeA).Pack()
	require.NoError(t, err)
	headerOnly := query[:12]
	for _, bad := range [][]byte{headerOnly, query[:len(query)-1], query[:20], {0}, {}, bytes.Repeat([]byte{0xff}, 600),
		append(append([]byte{}, headerOnly...), 0xc0, 0x0c, 0, 1, 0, 1)} {
		var c net.Conn
		in(t, g.ns, func() (err error) {
			c, err = new(net.Dialer).DialContext(context.Background(), "udp4", DNSAddr.String()+":53")
			return err
		})
		_, err = c.Write(bad)
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	a, err := g.ask("udp", "site.test.", dns.TypeA)
	require.NoError(t, err)
	require.Len(t, a.Answer, 1)
}

// TestDNSConcurrencyIsBounded: more connections than a guest may have do not cost the agent more.
func TestDNSConcurrencyIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", Tap)
	g := w.guest(s)
	w.zone.add(t, "site.test. 60 IN A "+siteA)
	for range dnsConnections + 8 {
		in(t, g.ns, func() error {
			c, err := new(net.Dialer).DialContext(context.Background(), "tcp4", DNSAddr.String()+":53") // the backlog takes the rest
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
			}
			return err
		})
	}
	for range dnsQuestions {
		s.dns.permits <- struct{}{}
	}
	a, err := g.ask("udp", "site.test.", dns.TypeA)
	require.NoError(t, err)
	require.Equal(t, dns.RcodeServerFailure, a.Rcode)
	for range dnsQuestions {
		<-s.dns.permits
	}
	a, err = g.ask("udp", "site.test.", dns.TypeA)
	require.NoError(t, err)
	require.Equal(t, dns.RcodeSuccess, a.Rcode)
}

func TestResolvConfIsReadFromTheHost(t *testing.T) {
	t.Parallel()
	u := &upstream{}
	servers, err := u.list()
	if err != nil {
		t.Skipf("this machine has no usable %s: %v", resolvConf, err)
	}
	for _, s := range servers {
		_, err := netip.ParseAddrPort(s)
		require.NoError(t, err)
	}
}

func (z *zone) setDown(down bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.down = down
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}
