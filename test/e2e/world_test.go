package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The test's internet: a namespace with public documentation addresses, a metadata address and
// a private network, behind the host namespace's uplink.
const (
	publicAddr   = "198.51.100.10"
	resolverAddr = "198.51.100.53"
	metadataAddr = "169.254.169.254"
	privateAddr  = "10.9.8.7"
	hostPublic   = "203.0.113.2"
	greeting     = "hello from the internet\n"
	httpPort     = 8080
)

type world struct {
	name  string
	ns    netns.NsHandle
	close []io.Closer
}

var internet world

// inNS runs f on a thread of the namespace; sockets made there stay there.
func inNS(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func makeWorld() error {
	internet.name = fmt.Sprintf("roosttest-net-%d", os.Getpid())
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := makeNamespace(); err != nil {
		return err
	}
	if err := connectWorld(); err != nil {
		return err
	}
	return serveWorld()
}

// makeNamespace makes the named namespace without changing that of any thread in use.
func makeNamespace() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.NewNamed(internet.name)
		internet.ns = ns
		done <- err
	}()
	return <-done
}

// connectWorld joins host and internet by a veth pair; the host's default route leads there.
func connectWorld() error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "wan", PeerNamespace: netlink.NsFd(int(internet.ns))}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	if err := address("uplink", hostPublic+"/24"); err != nil {
		return err
	}
	gateway := net.ParseIP("203.0.113.1")
	if err := netlink.RouteAdd(&netlink.Route{Gw: gateway}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return inNS(internet.ns, func() error {
		if err := address("lo", publicAddr+"/32", resolverAddr+"/32", metadataAddr+"/32", privateAddr+"/32"); err != nil {
			return err
		}
		return address("wan", "203.0.113.1/24")
	})
}

func address(link string, addrs ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, link, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// serveWorld answers HTTP on every address of the internet and of the host, and DNS.
func serveWorld() error {
	if err := inNS(internet.ns, func() error { return errors.Join(serveHTTP(), serveDNS()) }); err != nil {
		return err
	}
	return serveHTTP()
}

func serveHTTP() error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", fmt.Sprintf("0.0.0.0:%d", httpPort))
	if err != nil {
		return err
	}
	internet.close = append(internet.close, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	return nil
}

func answer(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4096)
	if _, err := c.Read(buf); err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(greeting), greeting)
}

// serveDNS knows two names: one leads to a public address, one to a private one.
func serveDNS() error {
	pc, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", resolverAddr+":53")
	if err != nil {
		return err
	}
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		name := q.Question[0].Name
		addr := map[string]string{"public.example.": publicAddr, "rebind.example.": privateAddr}[strings.ToLower(name)]
		if addr != "" && q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
				A:   net.ParseIP(addr),
			})
		}
		_ = w.WriteMsg(m)
	})}
	internet.close = append(internet.close, pc)
	go func() { _ = server.ActivateAndServe() }()
	return nil
}

func unmakeWorld() error {
	var errs []error
	for _, c := range internet.close {
		errs = append(errs, c.Close())
	}
	errs = append(errs, internet.ns.Close(), netns.DeleteNamed(internet.name))
	if _, err := os.Stat(filepath.Join("/run/netns", internet.name)); err == nil {
		errs = append(errs, fmt.Errorf("namespace %s is still there", internet.name))
	}
	return errors.Join(errs...)
}
