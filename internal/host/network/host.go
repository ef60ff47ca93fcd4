package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is the host namespace and a netlink socket in it.
type host struct {
	names
	ns *namespace
	nl *netlink.Handle
}

func openHost(inst names, path string) (*host, error) {
	ns, err := openNamespace(path)
	if err != nil {
		return nil, fmt.Errorf("open host namespace: %w", err)
	}
	h := &host{names: inst, ns: ns}
	err = ns.do(func() (err error) {
		h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	return h, nil
}

func (h *host) close() {
	h.nl.Close()
	_ = h.ns.close()
}

// dump lists again when the kernel says that the list changed while it was read, as it does
// when other slots come and go.
func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 20 {
		out, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

// addresses are the host's own, without the ends of our slots.
func (h *host) addresses() ([]netip.Prefix, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list host addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP.To4())
		if _, ours := h.parseLink(a.Label); ok && !ours {
			out = append(out, netip.PrefixFrom(addr, 32))
		}
	}
	return out, nil
}

// taken are the ranges that the host has addresses in or routes to.
func (h *host) taken() ([]netip.Prefix, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return h.nl.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list host routes: %w", err)
	}
	out, err := h.addresses()
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if bits, _ := r.Dst.Mask.Size(); ok && bits > 0 {
			out = append(out, netip.PrefixFrom(addr, bits))
		}
	}
	return out, err
}

// reserve puts an unreachable route for the subnet on the host. It keeps stray addresses from
// the default route, and it shows other installations that the subnet is taken.
func (h *host) reserve(subnet netip.Prefix) error {
	return h.nl.RouteAdd(reservation(subnet))
}

func (h *host) unreserve(subnet netip.Prefix) error {
	err := h.nl.RouteDel(reservation(subnet))
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func reservation(subnet netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: ipNet(subnet), Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN}
}

// forwarding reads ip_forward.
func (h *host) forwarding() (on bool, err error) {
	err = h.ns.do(func() error {
		data, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		on = strings.TrimSpace(string(data)) == "1"
		return err
	})
	return on, err
}

func (h *host) setForwarding(value string) error {
	return h.ns.do(func() error { return writeSysctl("ipv4/ip_forward", value) })
}

// plug configures the host's end of slot n.
func (h *host) plug(n int, addr netip.Prefix) error {
	link, err := h.nl.LinkByName(h.link(n))
	if err != nil {
		return err
	}
	err = h.ns.do(func() error {
		return writeSysctl("ipv6/conf/"+h.link(n)+"/disable_ipv6", "1")
	})
	if err != nil {
		return err
	}
	if err := h.nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return err
	}
	return h.nl.LinkSetUp(link)
}

// remove takes down slot n, however much of it there is. The link goes first: from then on
// nothing passes, even when a process still keeps a namespace alive.
func (h *host) remove(n int) error {
	return errors.Join(h.removeLink(n), unmountNamespace(h.portPath(n)), unmountNamespace(h.namespacePath(n)))
}

func (h *host) removeLink(n int) error {
	link, err := h.nl.LinkByName(h.link(n))
	switch {
	case err == nil:
		err = h.nl.LinkDel(link)
	case isNoLink(err):
		err = nil
	}
	if errors.Is(err, unix.ENODEV) {
		err = nil // it went with its namespace meanwhile
	}
	if err != nil {
		return fmt.Errorf("delete link %s: %w", h.link(n), err)
	}
	return nil
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}

// present are the numbers of this installation's slots of which anything exists.
func (h *host) present() (map[int]bool, error) {
	all, err := h.pieces()
	out := map[int]bool{}
	for n := range all {
		out[n] = true
	}
	return out, err
}

// pieces are the names of what exists of this installation's slots, by number.
func (h *host) pieces() (map[int][]string, error) {
	out := map[int][]string{}
	entries, err := os.ReadDir(nsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if n, ok := h.parseNamespace(e.Name()); ok {
			out[n] = append(out[n], e.Name())
		}
	}
	links, err := dump(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list host links: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if n, ok := h.parseLink(name); ok && l.Type() == "veth" {
			out[n] = append(out[n], name)
		}
	}
	return out, nil
}

// setOwner writes the sandbox on the slot's host link; owner reads it.
func (h *host) setOwner(n int, sandboxID string) error {
	link, err := h.nl.LinkByName(h.link(n))
	if err != nil {
		return err
	}
	return h.nl.LinkSetAlias(link, aliasPrefix+sandboxID)
}

func (h *host) owner(n int) (string, error) {
	link, err := h.nl.LinkByName(h.link(n))
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(link.Attrs().Alias, aliasPrefix), nil
}
