package boot

import (
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/roosthq/roost/internal/fault"
)

const networkCard = "eth0"

func network(c Config) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fault.Wrap(err, "bring up", "lo")
	}
	if c.Address == "" {
		return nil
	}
	card, err := waitForLink(networkCard)
	if err != nil {
		return err
	}
	if err := configure(card, c); err != nil {
		return fault.Wrap(err, "set up", networkCard)
	}
	return nil
}

func waitForLink(name string) (netlink.Link, error) {
	for deadline := time.Now().Add(deviceTimeout); ; time.Sleep(2 * time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err == nil {
			return link, nil
		}
		if time.Now().After(deadline) {
			return nil, fault.Wrap(err, "wait for network card", name)
		}
	}
}

func configure(card netlink.Link, c Config) error {
	if c.MAC != "" {
		mac, err := net.ParseMAC(c.MAC)
		if err != nil {
			return wrong("mac", err.Error())
		}
		if err := netlink.LinkSetHardwareAddr(card, mac); err != nil {
			return err
		}
	}
	addr, err := netlink.ParseAddr(c.Address)
	if err != nil {
		return wrong("address", err.Error())
	}
	if err := netlink.AddrAdd(card, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(card); err != nil {
		return err
	}
	return addRoute(card, c.Gateway)
}

func addRoute(card netlink.Link, gateway string) error {
	if gateway == "" {
		return nil
	}
	addr, err := netip.ParseAddr(gateway)
	if err != nil {
		return wrong("gateway", err.Error())
	}
	route := &netlink.Route{LinkIndex: card.Attrs().Index, Gw: addr.AsSlice()}
	return netlink.RouteAdd(route)
}
