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

// make builds slot n up to where it can be handed out, or nothing. Making the name claims the
// number against every other process.
func (m *Manager) make(ctx context.Context, n int) (_ *Slot, err error) {
	if err := claimName(m.host.namespacePath(n)); err != nil {
		return nil, err
	}
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, steps.Rollback(ctx))
		}
	}()
	steps.Push("slot", func(context.Context) error {
		if errors.Is(err, errTaken) {
			return unmountNamespace(m.host.namespacePath(n)) // the link is somebody else's
		}
		return m.host.remove(n)
	})
	if err := m.build(n); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return m.open(ctx, n)
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

// build makes the namespace and its links. The rules come first: at no time is there a link
// without them.
func (m *Manager) build(n int) error {
	hostAddrs, err := m.host.addresses()
	if err != nil {
		return err
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
		return m.wire(n, hostEnd, slotEnd)
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

// wire makes the uplink and the port in the calling thread's namespace.
func (m *Manager) wire(n int, hostEnd, slotEnd netip.Prefix) error {
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
	if err := makePort(); err != nil {
		return err
	}
	tap, err := nl.LinkByName(portName)
	if err != nil {
		return err
	}
	if err := configure(nl, tap, gatewayPrefix, GatewayMAC); err != nil {
		return fmt.Errorf("set up %s: %w", portName, err)
	}
	return addRoutes(nl, up, tap, hostEnd.Addr())
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
func addRoutes(nl *netlink.Handle, up, tap netlink.Link, gateway netip.Addr) error {
	err := nl.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: gateway.AsSlice()})
	if err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	err = nl.NeighSet(&netlink.Neigh{LinkIndex: tap.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: GuestAddr.AsSlice(), HardwareAddr: GuestMAC})
	if err != nil {
		return fmt.Errorf("set guest neighbour: %w", err)
	}
	return nil
}
