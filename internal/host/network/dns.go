package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
)

// What one guest may use of the agent.
const (
	dnsQuestions   = 64   // at a time
	dnsConnections = 16   // TCP, at a time
	dnsUDPSize     = 1232 // bytes of a UDP answer; larger ones are truncated, TCP has them whole
	dnsQuerySize   = 4096
	dnsIdle        = 5 * time.Second
	dnsLogEvery    = 10 * time.Second
)

// dnsServer answers the guest of one slot.
type dnsServer struct {
	cancel   context.CancelFunc
	upstream *upstream
	deny     *denyList
	log      *slog.Logger
	permits  chan struct{}
	servers  []*dns.Server
	running  sync.WaitGroup

	mu         sync.Mutex
	lastLog    time.Time
	suppressed int
}

// serveDNS opens the sockets inside the slot; they answer when it returns.
func (m *Manager) serveDNS(ctx context.Context, n int, ns *namespace) (*dnsServer, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var packets net.PacketConn
	var streams net.Listener
	address := net.JoinHostPort(DNSAddr.String(), "53")
	err := ns.do(func() (err error) {
		var lc net.ListenConfig
		if packets, err = lc.ListenPacket(ctx, "udp4", address); err != nil {
			return err
		}
		if streams, err = lc.Listen(ctx, "tcp4", address); err != nil {
			return errors.Join(err, packets.Close())
		}
		return nil
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("serve DNS: %w", err)
	}
	d := &dnsServer{cancel: cancel, upstream: m.upstream, deny: m.deny,
		log: m.log.With("slot", n), permits: make(chan struct{}, dnsQuestions)}
	d.run(ctx, &dns.Server{PacketConn: packets, UDPSize: dnsQuerySize, ReadTimeout: time.Hour})
	d.run(ctx, &dns.Server{Listener: netutil.LimitListener(streams, dnsConnections), MaxTCPQueries: 128, ReadTimeout: dnsIdle,
		IdleTimeout: func() time.Duration { return dnsIdle }})
	return d, nil
}

// run returns when the server accepts, since a server cannot be shut down before.
func (d *dnsServer) run(ctx context.Context, s *dns.Server) {
	started := make(chan struct{})
	s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { d.answer(ctx, w, q) })
	s.WriteTimeout = dnsIdle
	s.NotifyStartedFunc = func() { close(started) }
	d.servers = append(d.servers, s)
	d.running.Go(func() {
		if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
			d.log.Error("DNS server ended", "error", err)
		}
	})
	<-started
}

func (d *dnsServer) stop() {
	d.cancel() // ends the questions that wait for a resolver
	for _, s := range d.servers {
		_ = s.Shutdown()
	}
	d.running.Wait()
}

// answer answers one question.
func (d *dnsServer) answer(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	// The library believes the header's count: a header alone arrives here as "one question".
	if len(q.Question) != 1 {
		d.reply(w, q, failure(dns.RcodeFormatError))
		return
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		d.reply(w, q, failure(dns.RcodeRefused))
		return
	}
	select {
	case d.permits <- struct{}{}:
		defer func() { <-d.permits }()
	default:
		d.reply(w, q, failure(dns.RcodeServerFailure))
		return
	}
	answer, err := d.upstream.ask(ctx, question, wantsDNSSEC(q))
	if err != nil {
		d.complain(ctx, question.Name, err)
		answer = failure(dns.RcodeServerFailure)
	}
	if n := strip(answer, d.deny); n > 0 {
		d.log.Debug("stripped unreachable addresses from a DNS answer", "name", question.Name, "records", n)
	}
	d.reply(w, q, answer)
}

func failure(rcode int) *dns.Msg {
	return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}
}

func wantsDNSSEC(q *dns.Msg) bool {
	opt := q.IsEdns0()
	return opt != nil && opt.Do()
}

// reply sends answer as the answer to q, in the size that the client takes.
func (d *dnsServer) reply(w dns.ResponseWriter, q, answer *dns.Msg) {
	out := new(dns.Msg).SetRcode(q, answer.Rcode)
	out.RecursionAvailable = true
	out.AuthenticatedData = answer.AuthenticatedData
	out.Answer, out.Ns, out.Extra = answer.Answer, answer.Ns, answer.Extra
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
		out.SetEdns0(dnsUDPSize, opt.Do())
	}
	size = min(size, dnsUDPSize)
	if w.LocalAddr().Network() == "tcp" {
		size = dns.MaxMsgSize
	}
	out.Truncate(size)
	_ = w.WriteMsg(out) // a client that has gone
}

// complain logs a failure, but not every one: the guest decides how many there are.
func (d *dnsServer) complain(ctx context.Context, name string, err error) {
	if ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.lastLog) < dnsLogEvery {
		d.suppressed++
		return
	}
	d.log.Warn("no resolver answered", "name", name, "error", err, "suppressed", d.suppressed)
	d.lastLog, d.suppressed = time.Now(), 0
}
