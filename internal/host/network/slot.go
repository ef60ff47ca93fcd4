package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Slot is one sandbox's network. Its methods are safe for concurrent use; after Release they
// fail with fault.FailedPrecondition.
type Slot struct {
	m         *Manager
	number    int
	kind      PortKind
	sandboxID string
	ns        *namespace
	dns       *dnsServer

	mu       sync.Mutex
	detached bool // sockets and namespace are closed
	removed  bool
}

// Stats counts what passed between the guest and the outside, DNS and the agent's own
// connections excluded.
type Stats struct {
	RxBytes uint64 // received by the guest
	TxBytes uint64 // sent by the guest
}

// open attaches this process to an existing slot: its namespace and its DNS. What kind of
// port it has is seen there.
func (m *Manager) open(ctx context.Context, n int) (*Slot, error) {
	ns, err := openNamespace(m.host.namespacePath(n))
	if err != nil {
		return nil, err
	}
	var kind PortKind
	err = ns.do(func() (err error) {
		kind, err = findPort()
		return err
	})
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	dns, err := m.serveDNS(ctx, n, ns)
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	return &Slot{m: m, number: n, kind: kind, ns: ns, dns: dns}, nil
}

// Index is the slot's number, for journals.
func (s *Slot) Index() int { return s.number }

// SandboxID is the sandbox that holds the slot.
func (s *Slot) SandboxID() string { return s.sandboxID }

// Port is the kind of the slot's port.
func (s *Slot) Port() PortKind { return s.kind }

// Tap attaches a new descriptor to the port; the caller owns it. One descriptor (and its
// copies in other processes) can be attached at a time: while a VM has the port, Tap is
// fault.FailedPrecondition. So it is on a slot with a veth. A uid that TapFor has let in may
// attach no more.
func (s *Slot) Tap() (*os.File, error) {
	var f *os.File
	err := s.onTap("open tap of", func() (err error) {
		f, err = openTap(nobodyElse)
		return err
	})
	return f, err
}

// TapFor lets one uid attach to the port by itself, from inside the namespace netns, under the
// port's name there; root's aside, processes of no other uid may. It fails as Tap does: what is
// attached stays, and who may attach too.
func (s *Slot) TapFor(uid int) (netns, name string, err error) {
	const op = "give tap of"
	if uid < 1 {
		return "", "", fault.New(fault.Invalid, op, s.object(), "uid "+strconv.Itoa(uid)+" is not a sandbox's")
	}
	if err := s.onTap(op, func() error { return giveTap(uid) }); err != nil {
		return "", "", err
	}
	return s.m.host.namespacePath(s.number), portName, nil
}

// onTap runs use inside the slot, where it attaches to the tap.
func (s *Slot) onTap(op string, use func() error) error {
	if s.kind != Tap {
		return fault.New(fault.FailedPrecondition, op, s.object(), "its port is a "+string(s.kind))
	}
	err := s.ns.do(use)
	if errors.Is(err, unix.EBUSY) {
		return fault.New(fault.FailedPrecondition, op, s.object(), "a VM is attached to its tap")
	}
	return s.wrap(err, op)
}

// Namespace is the path of the throwaway namespace that holds the guest's end of a veth. It
// serves one start of a runtime, which takes the addresses off the interface. A slot with a
// tap has none: fault.FailedPrecondition.
func (s *Slot) Namespace() (string, error) {
	const op = "find port namespace of"
	if s.kind != Veth {
		return "", fault.New(fault.FailedPrecondition, op, s.object(), "its port is a "+string(s.kind))
	}
	if s.isDetached() {
		return "", s.wrap(os.ErrClosed, op)
	}
	path := s.m.host.portPath(s.number)
	ns, err := openNamespace(path)
	if err != nil {
		return "", s.wrap(err, op)
	}
	return path, ns.close()
}

// Dial connects to a TCP port of the guest from inside the slot. A refused connection is
// fault.Unavailable. A guest that is not up drops the first packet and the kernel sends the
// next a second later: to wait for one, dial again with short deadlines.
func (s *Slot) Dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fault.New(fault.Invalid, "dial", "port "+strconv.Itoa(port), "must be 1 to 65535")
	}
	conn, err := dialTCP(ctx, s.ns, netip.AddrPortFrom(GuestAddr, uint16(port)))
	if err != nil {
		return nil, s.wrap(err, "dial port "+strconv.Itoa(port)+" of")
	}
	return conn, nil
}

// SetPolicy replaces the slot's policy in one step. It holds for flows that exist, too.
func (s *Slot) SetPolicy(_ context.Context, p Policy) error {
	return s.wrap(s.ns.do(func() error { return rewritePolicy(p) }), "set policy of")
}

// Stats reads the counters of the slot's uplink.
func (s *Slot) Stats() (Stats, error) {
	if s.isDetached() {
		return Stats{}, s.wrap(os.ErrClosed, "read counters of")
	}
	link, err := s.m.host.nl.LinkByName(s.m.host.link(s.number))
	if err != nil {
		return Stats{}, s.wrap(err, "read counters of")
	}
	counters := link.Attrs().Statistics
	if counters == nil {
		return Stats{}, nil
	}
	// The host's end receives what the guest sends.
	return Stats{RxBytes: counters.TxBytes, TxBytes: counters.RxBytes}, nil
}

// detach closes what this process holds; the slot itself goes on.
func (s *Slot) detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detached {
		return
	}
	s.detached = true
	s.dns.stop()
	_ = s.ns.close()
}

func (s *Slot) isDetached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.detached
}

// remove takes the slot down; it may be repeated after a failure.
func (s *Slot) remove() error {
	s.detach()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return nil
	}
	if err := s.m.host.remove(s.number); err != nil {
		return err
	}
	s.removed = true
	return nil
}

func (s *Slot) object() string { return "slot " + strconv.Itoa(s.number) }

func (s *Slot) wrap(err error, op string) error {
	switch {
	case err == nil:
		return nil
	case s.isDetached():
		return fault.New(fault.FailedPrecondition, op, s.object(), "it was released")
	case isUnreachable(err):
		return &fault.Error{Kind: fault.Unavailable, Op: op, Object: s.object(), Err: err}
	}
	return fault.Wrap(err, op, s.object())
}

func isUnreachable(err error) bool {
	for _, errno := range []error{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ECONNRESET, unix.ETIMEDOUT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
