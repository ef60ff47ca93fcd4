package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	slotTable  = "roost"
	setDenied  = "denied"
	setHost    = "host"
	egress     = "egress"
	ingress    = "ingress"
	dnsChain   = "dns"
	dnsPort    = 53
	flowsLimit = 8192 // so that one guest cannot fill the host's connection table
)

const replies = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED

// writeSlotRules puts a new slot's rules into the calling thread's namespace, in one step.
func writeSlotRules(denied []netip.Prefix, hostAddrs []netip.Prefix) error {
	r, err := newRuleset(slotTable)
	if err != nil {
		return err
	}
	r.conn.AddTable(r.table)
	if _, err := r.addrSet(1, setDenied, denied); err != nil {
		return err
	}
	if _, err := r.addrSet(2, setHost, hostAddrs); err != nil {
		return err
	}
	for _, name := range []string{egress, ingress, dnsChain} {
		r.chain(name)
	}
	if err := r.policyRules(Policy{}); err != nil {
		return err
	}
	r.forwardRules()
	r.inputRules()
	r.outputRules()
	r.natRules()
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("write slot rules: %w", err)
	}
	return nil
}

// rewritePolicy replaces the policy's chains; a packet sees the old rules or the new ones.
func rewritePolicy(p Policy) error {
	r, err := newRuleset(slotTable)
	if err != nil {
		return err
	}
	for _, name := range []string{egress, ingress, dnsChain} {
		r.conn.FlushChain(&nftables.Chain{Name: name, Table: r.table})
	}
	if err := r.policyRules(p); err != nil {
		return err
	}
	return r.conn.Flush()
}

// policyRules fill the chains that a policy decides. Established flows pass through them too,
// so that a stricter policy ends them.
func (r *ruleset) policyRules(p Policy) error {
	out, in, dns := r.named(egress), r.named(ingress), r.named(dnsChain)
	r.rule(out, notSrc(GuestAddr), drop())
	switch p.Internet {
	case InternetOpen:
		r.rule(out, dstIn(r.set(setDenied)), reject())
		r.rule(out, dstIn(r.set(setHost)), reject())
		r.rule(out, flowsOver(flowsLimit), drop())
		r.rule(out, oif(uplinkName), accept())
		r.rule(in, ctState(replies), accept())
		r.rule(dns, dstPort(unix.IPPROTO_UDP, dnsPort), accept())
		r.rule(dns, dstPort(unix.IPPROTO_TCP, dnsPort), accept())
	case InternetNone:
		r.rule(out, reject())
		r.rule(dns, reject())
	default:
		return fault.New(fault.Invalid, "apply", "network policy", fmt.Sprintf("unknown internet access %d", p.Internet))
	}
	return nil
}

func (r *ruleset) named(chain string) *nftables.Chain {
	return &nftables.Chain{Name: chain, Table: r.table}
}

func (r *ruleset) set(name string) *nftables.Set {
	return &nftables.Set{Name: name, Table: r.table}
}

func (r *ruleset) forwardRules() {
	c := r.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward,
		nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	r.rule(c, notIPv4(), dropUncounted())
	// NAT skips invalid packets: they would leave with the guest's own address.
	r.rule(c, ctState(expr.CtStateBitINVALID), drop())
	r.rule(c, iif(portName), jump(egress))
	r.rule(c, iif(uplinkName), oif(portName), jump(ingress))
}

func (r *ruleset) inputRules() {
	c := r.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput,
		nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	r.rule(c, iif(portName), src(GuestAddr), ctState(expr.CtStateBitESTABLISHED), ctReply(), accept())
	r.rule(c, iif(portName), src(GuestAddr), dst(GatewayAddr), jump(dnsChain))
}

// outputRules let out what the agent needs: its connections to the guest, DNS answers, and
// the ICMP of reject.
func (r *ruleset) outputRules() {
	c := r.hook("output", nftables.ChainTypeFilter, nftables.ChainHookOutput,
		nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	for _, allowed := range []match{protocol(unix.IPPROTO_TCP), srcPort(unix.IPPROTO_UDP, dnsPort), protocol(unix.IPPROTO_ICMP)} {
		r.rule(c, oif(portName), dst(GuestAddr), allowed, accept())
	}
}

func (r *ruleset) natRules() {
	c := r.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting,
		nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	r.rule(c, oif(uplinkName), src(GuestAddr), masquerade())
}
