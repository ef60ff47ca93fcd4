package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// match is a part of a rule; verdicts and counters are parts too.
type match = []expr.Any

// ruleset collects one transaction: the kernel takes all of it or nothing.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// newRuleset works in the namespace of the calling thread.
func newRuleset(table string) (*ruleset, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	return &ruleset{conn, &nftables.Table{Family: nftables.TableFamilyINet, Name: table}}, nil
}

func (r *ruleset) chain(name string) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table})
}

func (r *ruleset) hook(name string, kind nftables.ChainType, hook *nftables.ChainHook,
	priority *nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: kind,
		Hooknum: hook, Priority: priority, Policy: &policy})
}

func (r *ruleset) rule(chain *nftables.Chain, parts ...match) {
	var all match
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: all})
}

// addrSet makes an interval set; an empty one matches nothing.
func (r *ruleset) addrSet(id uint32, name string, list []netip.Prefix) (*nftables.Set, error) {
	// The library numbers sets with a global counter that it does not guard: number them here.
	set := &nftables.Set{Table: r.table, ID: id, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	var elements []nftables.SetElement
	for _, s := range spans(list) {
		elements = append(elements, nftables.SetElement{Key: fromUint(s.first).AsSlice()})
		if s.last != 1<<32-1 {
			elements = append(elements, nftables.SetElement{Key: fromUint(s.last + 1).AsSlice(), IntervalEnd: true})
		}
	}
	return set, r.conn.AddSet(set, elements)
}

// iif and oif match an interface by its whole name.
func iif(name string) match { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, wholeName(name)) }
func oif(name string) match { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, wholeName(name)) }

// iifPrefix and oifPrefix match every interface whose name begins so.
func iifPrefix(p string) match    { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(p)) }
func oifPrefix(p string) match    { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, []byte(p)) }
func notOIFPrefix(p string) match { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, []byte(p)) }

func ifname(key expr.MetaKey, op expr.CmpOp, data []byte) match {
	return match{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

func wholeName(name string) []byte {
	out := make([]byte, unix.IFNAMSIZ)
	copy(out, name)
	return out
}

func family(op expr.CmpOp) match {
	return match{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{unix.NFPROTO_IPV4}}}
}

func notIPv4() match { return family(expr.CmpOpNeq) }

// Offsets of the addresses in an IPv4 header.
const (
	srcOffset = 12
	dstOffset = 16
)

func header(offset uint32) match {
	return append(family(expr.CmpOpEq),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4})
}

func src(a netip.Addr) match {
	return append(header(srcOffset), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func notSrc(a netip.Addr) match {
	return append(header(srcOffset), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: a.AsSlice()})
}

func dst(a netip.Addr) match {
	return append(header(dstOffset), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func dstIn(set *nftables.Set) match {
	return append(header(dstOffset), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
}

func srcPrefix(p netip.Prefix) match {
	mask := binaryutil.BigEndian.PutUint32(^uint32(uint64(1)<<(32-p.Bits()) - 1))
	return append(header(srcOffset),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

// srcNotRouted matches a source that the host would not answer through the same interface.
func srcNotRouted() match {
	return match{&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)}}
}

func protocol(proto byte) match {
	return match{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

func port(proto byte, offset uint32, number uint16) match {
	return append(protocol(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)})
}

func srcPort(proto byte, number uint16) match { return port(proto, 0, number) }
func dstPort(proto byte, number uint16) match { return port(proto, 2, number) }

func ctState(bits uint32) match {
	return match{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}

// ctReply matches packets that answer the side that began the flow.
func ctReply() match {
	return match{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}}}
}

func flowsOver(limit uint32) match {
	return append(ctState(expr.CtStateBitNEW), &expr.Connlimit{Count: limit, Flags: expr.NFT_CONNLIMIT_F_INV})
}

func accept() match           { return match{&expr.Verdict{Kind: expr.VerdictAccept}} }
func jump(chain string) match { return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
func masquerade() match       { return match{&expr.Masq{}} }
func drop() match             { return match{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }
func dropUncounted() match    { return match{&expr.Verdict{Kind: expr.VerdictDrop}} }

// reject tells the guest at once, so that its programs fail instead of hanging.
func reject() match {
	return match{&expr.Counter{},
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}
