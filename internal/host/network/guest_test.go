package network

import (
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forEachPort runs a test for both kinds of slot.
func forEachPort(t *testing.T, test func(t *testing.T, kind PortKind)) {
	t.Helper()
	for _, kind := range []PortKind{Tap, Veth} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

func acquire(t *testing.T, m *Manager, id string, kind PortKind) *Slot {
	t.Helper()
	s, err := m.Acquire(t.Context(), id, kind)
	require.NoError(t, err)
	require.Equal(t, kind, s.Port())
	return s
}

// guest is a kernel behind a slot's port: what a VM's would be, or, behind a veth, the throwaway
// namespace's own.
type guest struct {
	ns   *namespace
	card string
	// send puts a frame on the wire beside that kernel.
	send func(frame []byte) error
}

func (w *world) guest(s *Slot) *guest { return plugGuest(w.t, s) }

func plugGuest(t testing.TB, s *Slot) *guest {
	t.Helper()
	g := &guest{card: guestName}
	if s.Port() == Tap {
		g.plugTap(t, s)
	} else {
		g.plugVeth(t, s)
	}
	waitRunning(t, s.ns, portName)
	waitRunning(t, g.ns, g.card)
	return g
}

// plugVeth is a packet-socket user, as runsc is one.
func (g *guest) plugVeth(t testing.TB, s *Slot) {
	t.Helper()
	path, err := s.Namespace()
	require.NoError(t, err)
	g.ns, err = openNamespace(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = g.ns.close() })
	wire := packetSocket(t, g.ns, g.card, unix.SOCK_RAW)
	g.send = func(frame []byte) error {
		_, err := wire.Write(frame)
		return err
	}
}

func (g *guest) plugTap(t testing.TB, s *Slot) {
	t.Helper()
	g.ns, g.card = newNS(t), portName
	out, err := s.Tap() // the slot's side
	require.NoError(t, err)
	var card *os.File
	in(t, g.ns, func() (err error) {
		if card, err = openTap(nobodyElse); err != nil {
			return err
		}
		link, err := netlink.LinkByName(portName)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, GuestMAC); err != nil {
			return err
		}
		if err := giveAddrs(portName, GuestPrefix.String()); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: GatewayAddr.AsSlice()})
	})
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(out, card) })
	pumps.Go(func() { pump(card, out) })
	t.Cleanup(func() { _, _ = out.Close(), card.Close(); pumps.Wait() })
	g.send = func(frame []byte) error {
		_, err := out.Write(append(make([]byte, 10), frame...)) // an empty vnet header
		return err
	}
}

// waitRunning returns when the kernel has noticed that a link has another side, which it does
// in a worker of its own; before that it drops packets.
func waitRunning(t testing.TB, ns *namespace, link string) {
	t.Helper()
	require.Eventually(t, func() bool {
		running := false
		in(t, ns, func() error {
			i, err := net.InterfaceByName(link)
			running = err == nil && i.Flags&net.FlagRunning != 0
			return err
		})
		return running
	}, 10*time.Second, 2*time.Millisecond)
}

// pump copies frames, vnet header and all.
func pump(to, from *os.File) {
	buf := make([]byte, 65600)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		_, _ = to.Write(buf[:n]) // EIO while the other side is not up: lost, like a frame
	}
}
