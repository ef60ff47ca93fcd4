package census

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addNamespaces counts names in /run/netns and namespaces that only processes of the scope, or
// descriptors of this process, keep alive.
func (c Census) addNamespaces(s Scope, procs []proc) error {
	list, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range list {
		if s.named(e.Name()) {
			c.addNamed(Namespace, e.Name())
		}
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	for _, p := range procs {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.pid))
		if err == nil && ns != own {
			c.add(Namespace, ns, fmt.Sprintf("%s of %s", ns, p))
		}
	}
	return nil
}

// noisy are links that container engines and the like put up and take down at any time.
var noisy = []string{"docker", "br-", "veth", "virbr", "cali", "cni", "flannel", "tailscale", "wl", "wg"}

func (c Census) addLinks(s Scope) error {
	links, err := dumped(netlink.LinkList())
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		ours := s.named(a.Name, a.Alias) || (s.Links != nil && s.Links.MatchString(a.Name))
		if ours {
			c.add(Link, a.Name, strings.TrimSpace(fmt.Sprintf("%s (%s) %s", a.Name, l.Type(), a.Alias)))
		}
		if !ours && (!s.Host || hasPrefix(a.Name, noisy)) {
			continue
		}
		if err := c.addAddresses(l); err != nil {
			return err
		}
	}
	if s.Host {
		return c.addRoutes(links)
	}
	return nil
}

// dumped accepts a list that the kernel changed while it was read: what leaked is in it.
func dumped[T any](list []T, err error) ([]T, error) {
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil
	}
	return list, err
}

// addAddresses counts IPv4 addresses only: IPv6 ones come and go by themselves.
func (c Census) addAddresses(l netlink.Link) error {
	list, err := dumped(netlink.AddrList(l, netlink.FAMILY_V4))
	if errors.Is(err, unix.ENODEV) {
		return nil // the link went away while we looked
	}
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range list {
		c.addNamed(Address, fmt.Sprintf("%s on %s", a.IPNet, l.Attrs().Name))
	}
	return nil
}

// addRoutes counts the routes of all tables, those through no link (blackhole, unreachable) included.
func (c Census) addRoutes(links []netlink.Link) error {
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	list, err := dumped(netlink.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_TABLE))
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	names := map[int]string{0: "no link"}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, r := range list {
		if name := names[r.LinkIndex]; !hasPrefix(name, noisy) {
			c.addNamed(Route, fmt.Sprintf("%s through %s, table %d, type %d", r.Dst, name, r.Table, r.Type))
		}
	}
	return nil
}

func (c Census) addTables(s Scope) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // this kernel has no netfilter netlink: the disk shape of the in-VM lane
	}
	if err != nil {
		return fmt.Errorf("list nft tables: %w", err)
	}
	for _, t := range tables {
		if s.named(t.Name) {
			c.addNamed(Table, fmt.Sprintf("%s (family %d)", t.Name, t.Family))
		}
	}
	return nil
}

func (c Census) addSysctls(s Scope) error {
	if !s.Host {
		return nil
	}
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		b, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		c.addNamed(Sysctl, name+" = "+strings.TrimSpace(string(b)))
	}
	return nil
}

// addSockets counts unix sockets with a path (or an abstract name, which begins with @).
func (c Census) addSockets(s Scope) error {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		path := strings.Join(f[7:], " ")
		if !s.ours(path) {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		const listening = 0x10000
		text := path
		if err == nil && flags&listening != 0 {
			text += " (listening)"
		}
		c.add(Socket, path, text)
	}
	return nil
}
