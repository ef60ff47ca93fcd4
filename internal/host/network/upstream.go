package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const resolvConf = "/etc/resolv.conf"

// upstream asks the host's resolvers, from the host namespace.
type upstream struct {
	ns      *namespace
	servers []string // configured; else resolvConf
	timeout time.Duration

	mu      sync.Mutex
	read    []string // from resolvConf, as of changed
	changed time.Time
}

// ask tries the resolvers in order until one knows.
func (u *upstream) ask(ctx context.Context, q dns.Question, dnssec bool) (*dns.Msg, error) {
	servers, err := u.list()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, server := range servers {
		answer, err := u.askOne(ctx, server, q, dnssec)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", server, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (u *upstream) askOne(ctx context.Context, server string, q dns.Question, dnssec bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	answer, err := u.exchange(ctx, "udp", server, q, dnssec)
	if err == nil && answer.Truncated {
		answer, err = u.exchange(ctx, "tcp", server, q, dnssec)
	}
	if err != nil {
		return nil, err
	}
	switch answer.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		return answer, nil
	}
	return nil, errors.New("answered " + dns.RcodeToString[answer.Rcode])
}

// exchange sends a question of our own making: nothing of the guest's message but the question
// itself gets out.
func (u *upstream) exchange(ctx context.Context, network, server string, q dns.Question, dnssec bool) (*dns.Msg, error) {
	raw, err := u.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: raw, UDPSize: dns.DefaultMsgSize}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	msg := new(dns.Msg)
	msg.Id, msg.RecursionDesired, msg.Question = dns.Id(), true, []dns.Question{q}
	msg.SetEdns0(dnsUDPSize, dnssec)
	if err := conn.WriteMsg(msg); err != nil {
		return nil, err
	}
	for {
		answer, err := conn.ReadMsg()
		if err != nil && answer == nil {
			return nil, err
		}
		if err == nil && answers(answer, msg) {
			return answer, nil
		}
		// A late or forged packet: the true one may follow, until the time is over.
		if network == "tcp" || ctx.Err() != nil {
			return nil, errors.New("answered something else")
		}
	}
}

func answers(a, q *dns.Msg) bool {
	return a.Response && a.Id == q.Id && len(a.Question) == 1 &&
		a.Question[0].Qtype == q.Question[0].Qtype && a.Question[0].Qclass == q.Question[0].Qclass &&
		strings.EqualFold(a.Question[0].Name, q.Question[0].Name)
}

func (u *upstream) dial(ctx context.Context, network, server string) (net.Conn, error) {
	if network == "tcp" {
		to, err := netip.ParseAddrPort(server)
		if err != nil {
			return nil, err
		}
		return dialTCP(ctx, u.ns, to)
	}
	var conn net.Conn
	err := u.ns.do(func() (err error) { // connecting a UDP socket does not wait
		conn, err = new(net.Dialer).DialContext(ctx, network, server)
		return err
	})
	return conn, err
}

// list is the resolvers of now.
func (u *upstream) list() ([]string, error) {
	if len(u.servers) > 0 {
		return u.servers, nil
	}
	info, err := os.Stat(resolvConf)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !info.ModTime().Equal(u.changed) {
		conf, err := dns.ClientConfigFromFile(resolvConf)
		if err != nil {
			return nil, err
		}
		u.read, u.changed = nil, info.ModTime()
		for _, s := range conf.Servers {
			u.read = append(u.read, net.JoinHostPort(s, conf.Port))
		}
	}
	if len(u.read) == 0 {
		return nil, errors.New(resolvConf + " names no resolver")
	}
	return u.read, nil
}
