package network

import (
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// strip takes out of an answer what would lead a guest to a denied address (a name that
// somebody outside points at the inside), and returns how many records that were.
func strip(m *dns.Msg, deny *denyList) int {
	before := len(m.Answer) + len(m.Ns) + len(m.Extra)
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		*section = slices.DeleteFunc(*section, func(rr dns.RR) bool {
			// EDNS is between neighbours: the resolver's goes, ours is added.
			return rr.Header().Rrtype != dns.TypeOPT && leadsInside(rr, deny)
		})
	}
	stripped := before - len(m.Answer) - len(m.Ns) - len(m.Extra)
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	if stripped > 0 {
		m.AuthenticatedData = false
	}
	return stripped
}

func leadsInside(rr dns.RR, deny *denyList) bool {
	switch rr := rr.(type) {
	case *dns.A:
		return denied(rr.A, deny)
	case *dns.AAAA:
		return denied(rr.AAAA, deny)
	case *dns.SVCB:
		return hintsInside(rr, deny)
	case *dns.HTTPS:
		return hintsInside(&rr.SVCB, deny)
	}
	return false
}

// hintsInside looks at the addresses that service records carry.
func hintsInside(rr *dns.SVCB, deny *denyList) bool {
	isDenied := func(ip net.IP) bool { return denied(ip, deny) }
	return slices.ContainsFunc(rr.Value, func(kv dns.SVCBKeyValue) bool {
		switch kv := kv.(type) {
		case *dns.SVCBIPv4Hint:
			return slices.ContainsFunc(kv.Hint, isDenied)
		case *dns.SVCBIPv6Hint:
			return slices.ContainsFunc(kv.Hint, isDenied)
		}
		return false
	})
}

// denied treats what is no address as denied.
func denied(ip net.IP, deny *denyList) bool {
	a, ok := netip.AddrFromSlice(ip)
	return !ok || deny.contains(a)
}
