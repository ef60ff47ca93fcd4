package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/undo"
)

// errTaken says that something with the number exists already.
var errTaken = errors.New("slot number is taken")

// make builds slot n up to where it can be handed out, or nothing. Making the names claims the
// number against every other process.
func (m *Manager) make(ctx context.Context, n int, kind PortKind) (_ *Slot, err error) {
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, steps.Rollback(ctx))
		}
	}()
	for _, path := range m.paths(n, kind) {
		if err := claimName(path); err != nil {
			return nil, err
		}
		steps.Push("namespace", func(context.Context) error { return unmountNamespace(path) })
	}
	steps.Push("link", func(context.Context) error {
		if errors.Is(err, errTaken) {
			return nil // the link is somebody else's
		}
		return m.host.removeLink(n)
	})
	if err := failpoint.Hit("network.make.named"); err != nil {
		return nil, err
	}
	if err := m.build(n, kind); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return m.open(ctx, n)
}

// paths are the names of the namespaces of slot n.
func (m *Manager) paths(n int, kind PortKind) []string {
	if kind == Veth {
		return []string{m.host.namespacePath(n), m.host.portPath(n)}
	}
	return []string{m.host.namespacePath(n)}
}

func claimName(path string) error {
	if err := os.MkdirAll(nsDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if errors.Is(err, os.ErrExist) {
		return errTaken
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// build makes the namespaces and their links. The rules come first: at no time is there a link
// without them.
func (m *Manager) build(n int, kind PortKind) error {
	hostAddrs, err := m.host.addresses()
	if err != nil {
		return err
	}
	var far *namespace
	if kind == Veth {
		if far, err = makeFar(m.host.portPath(n)); err != nil {
			return err
		}
		defer func() { _ = far.close() }()
	}
	hostEnd, slotEnd := uplink(m.subnet, n)
	err = doNew(m.host.namespacePath(n), func() error {
		if err := failpoint.Hit("network.make.namespace"); err != nil {
			return err
		}
		if err := writeSlotRules(m.deny.v4, hostAddrs); err != nil {
			return err
		}
		if err := slotSysctls(); err != nil {
			return err
		}
		return m.wire(n, hostEnd, slotEnd, far)
	})
	if err != nil {
		return err
	}
	if err := failpoint.Hit("network.make.wired"); err != nil {
		return err
	}
	if err := m.host.plug(n, hostEnd); err != nil {
		return fmt.Errorf("set up host link: %w", err)
	}
	return nil
}

func slotSysctls() error {
	for _, s := range [][2]string{
		{"ipv6/conf/all/disable_ipv6", "1"},
		{"ipv6/conf/default/disable_ipv6", "1"},
		{"ipv4/conf/all/arp_ignore", "1"}, // the guest need not learn the uplink address
		{"ipv4/icmp_ratelimit", "0"},      // a rejected connection fails at once, always
		{"ipv4/ip_forward", "1"},
	} {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return fmt.Errorf("set %s: %w", s[0], err)
		}
	}
	return nil
}

// wire makes the uplink and the port in the calling thread's namespace: a veth into far, or
// a tap when there is none.
func (m *Manager) wire(n int, hostEnd, slotEnd netip.Prefix, far *namespace) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	up, err := m.makeUplink(nl, n)
	if err != nil {
		return err
	}
	if err := configure(nl, up, slotEnd, nil); err != nil {
		return fmt.Errorf("set up %s: %w", uplinkName, err)
	}
	port, err := makePort(nl, far)
	if err != nil {
		return err
	}
	if err := configure(nl, port, gatewayPrefix, GatewayMAC); err != nil {
		return fmt.Errorf("set up %s: %w", portName, err)
	}
	return addRoutes(nl, up, port, hostEnd.Addr())
}

func (m *Manager) makeUplink(nl *netlink.Handle, n int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = uplinkName, MTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: m.host.link(n), PeerMTU: MTU}
	err := control(m.host.ns.file, func(fd int) error {
		veth.PeerNamespace = netlink.NsFd(fd)
		return nl.LinkAdd(veth)
	})
	if errors.Is(err, unix.EEXIST) {
		return nil, errTaken // a link whose namespace has no name any more
	}
	if err != nil {
		return nil, fmt.Errorf("make link %s: %w", m.host.link(n), err)
	}
	return veth, nil
}

func configure(nl *netlink.Handle, link netlink.Link, addr netip.Prefix, mac net.HardwareAddr) error {
	if mac != nil {
		if err := nl.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
	}
	if err := nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return err
	}
	return nl.LinkSetUp(link)
}

// addRoutes sends the world through the uplink, and makes the guest's neighbour entry permanent:
// no ARP before the first packet, and none that a guest could answer wrongly.
func addRoutes(nl *netlink.Handle, up, port netlink.Link, gateway netip.Addr) error {
	err := nl.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: gateway.AsSlice()})
	if err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	if err := knowNeighbour(nl, port, GuestAddr, GuestMAC); err != nil {
		return fmt.Errorf("set guest neighbour: %w", err)
	}
	return nil
}

func knowNeighbour(nl *netlink.Handle, link netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	return nl.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: mac})
}
