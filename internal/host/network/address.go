package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/roosthq/roost/internal/fault"
)

// The same in every slot.
var (
	GuestAddr   = netip.MustParseAddr("10.171.0.2")
	GatewayAddr = netip.MustParseAddr("10.171.0.1")
	GuestPrefix = netip.MustParsePrefix("10.171.0.2/30")
	// DNSAddr is the resolver a guest is told.
	DNSAddr = GatewayAddr
	// GatewayMAC is fixed too: a restored guest has it in its neighbour table.
	GuestMAC   = net.HardwareAddr{0x02, 0x72, 0x6f, 0x73, 0x74, 0x02}
	GatewayMAC = net.HardwareAddr{0x02, 0x72, 0x6f, 0x73, 0x74, 0x01}
)

// MTU of the port and the uplink.
const MTU = 1500

var (
	gatewayPrefix = netip.MustParsePrefix("10.171.0.1/30")
	subnetSpace   = netip.MustParsePrefix("10.128.0.0/9")
)

const subnetBits = 18

// Denied are the ranges that no guest reaches, whatever its policy: this network, private,
// shared, loopback, link-local (metadata), benchmarking, multicast, reserved, broadcast.
// The documentation ranges are not among them.
func Denied() []netip.Prefix { return slices.Clone(denied4) }

var denied4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4")

// denied6 matters in DNS answers only; IPv6 packets do not pass at all.
var denied6 = prefixes("::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

// denyList answers whether an address is out of a guest's reach.
type denyList struct {
	v4, v6 []netip.Prefix
}

func newDenyList(extra []string) (*denyList, error) {
	d := &denyList{v4: slices.Clone(denied4), v6: slices.Clone(denied6)}
	for _, text := range extra {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, invalid("DeniedCIDRs", text, err.Error())
		case p.Addr().Is4():
			d.v4 = append(d.v4, p.Masked())
		case p.Addr().Is4In6():
			return nil, invalid("DeniedCIDRs", text, "write it as an IPv4 range")
		default:
			d.v6 = append(d.v6, p.Masked())
		}
	}
	return d, nil
}

func (d *denyList) contains(a netip.Addr) bool {
	a = a.Unmap()
	if a.Is4() {
		return containsAddr(d.v4, a)
	}
	if inner, ok := embedded4(a); ok && containsAddr(d.v4, inner) {
		return true
	}
	return containsAddr(d.v6, a)
}

func containsAddr(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

var (
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	sixto4  = netip.MustParsePrefix("2002::/16")
	compat4 = netip.MustParsePrefix("::/96")
)

// embedded4 finds the IPv4 address that a translator would send to.
func embedded4(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case nat64.Contains(a), compat4.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixto4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

// span is a closed range of IPv4 addresses.
type span struct{ first, last uint32 }

// spans sorts and merges prefixes: the kernel refuses overlapping intervals.
func spans(list []netip.Prefix) []span {
	all := make([]span, 0, len(list))
	for _, p := range list {
		first := toUint(p.Masked().Addr())
		all = append(all, span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)})
	}
	slices.SortFunc(all, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	var out []span
	for _, s := range all {
		if n := len(out); n > 0 && uint64(s.first) <= uint64(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

func toUint(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromUint(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

// uplink is the /31 of slot n: the host's end and the slot's.
func uplink(subnet netip.Prefix, n int) (hostEnd, slotEnd netip.Prefix) {
	base := toUint(subnet.Masked().Addr()) + uint32(2*(n-1))
	return netip.PrefixFrom(fromUint(base), 31), netip.PrefixFrom(fromUint(base+1), 31)
}

// capacity is how many slots fit into a subnet.
func capacity(subnet netip.Prefix) int {
	return min(MaxSlots, 1<<(32-subnet.Bits())/2)
}

func parseSubnet(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, invalid("Subnet", text, err.Error())
	case !p.Addr().Is4() || p.Bits() > 31 || p.Bits() < 8:
		return p, invalid("Subnet", text, "must be an IPv4 range between /8 and /31")
	case p.Overlaps(GuestPrefix):
		return p, invalid("Subnet", text, "must not hold the guests' own range "+GuestPrefix.Masked().String())
	}
	return p.Masked(), nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func noFreeSubnet() error {
	return fault.New(fault.ResourceExhausted, "choose", "subnet in "+subnetSpace.String(),
		"every /18 overlaps an address or route of this host").WithHint("choose a range with roost up --subnet")
}
