package network

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// forwardingMark is an empty chain that says: this installation found ip_forward off and set
// it. An installation that starts later reads there that "on" was not the host's own choice.
const forwardingMark = "forwarding_was_off"

// writeHostRules replaces the installation's table in one step: flows keep their NAT, which
// lives in the connection table.
func writeHostRules(inst names, subnet netip.Prefix, marked bool) error {
	r, err := newRuleset(inst.table())
	if err != nil {
		return err
	}
	// Adding first makes the deletion legal when there is no such table.
	r.conn.AddTable(r.table)
	r.conn.DelTable(r.table)
	r.conn.AddTable(r.table)
	if marked {
		r.chain(forwardingMark)
	}
	slots := inst.linkPrefix()
	r.hostSpoof(slots)
	r.hostInput(slots)
	r.hostForward(slots)
	r.hostNAT(slots, subnet)
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("write host rules: %w", err)
	}
	return nil
}

// hostSpoof lets a slot send from its own /31 only.
func (r *ruleset) hostSpoof(slots string) {
	c := r.hook("spoof", nftables.ChainTypeFilter, nftables.ChainHookPrerouting,
		nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	r.rule(c, iifPrefix(slots), notIPv4(), dropUncounted())
	r.rule(c, iifPrefix(slots), srcNotRouted(), drop())
}

// hostInput keeps guests from every address of the host, whichever it will have.
func (r *ruleset) hostInput(slots string) {
	c := r.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput,
		nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	r.rule(c, iifPrefix(slots), drop())
}

func (r *ruleset) hostForward(slots string) {
	c := r.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward,
		nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	r.rule(c, iifPrefix(slots), ctState(expr.CtStateBitINVALID), drop())
	r.rule(c, iifPrefix(slots), oifPrefix(slots), drop())
	r.rule(c, oifPrefix(slots), ctState(replies), accept())
	r.rule(c, oifPrefix(slots), drop())
}

func (r *ruleset) hostNAT(slots string, subnet netip.Prefix) {
	c := r.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting,
		nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	r.rule(c, srcPrefix(subnet), notOIFPrefix(slots), masquerade())
}

// deleteHostRules removes the installation's table; none is no error.
func deleteHostRules(inst names) error {
	r, err := newRuleset(inst.table())
	if err != nil {
		return err
	}
	r.conn.AddTable(r.table)
	r.conn.DelTable(r.table)
	return r.conn.Flush()
}

// otherInstallations looks at the tables of other installations on this host: whether there
// are any, and whether one of them turned forwarding on.
func otherInstallations(inst names) (exist, marked bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, false, err
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, false, err
	}
	for _, c := range chains {
		id, ours := strings.CutPrefix(c.Table.Name, tablePrefix)
		if !ours || !installationID.MatchString(id) || id == string(inst) {
			continue
		}
		exist = true
		marked = marked || c.Name == forwardingMark
	}
	return exist, marked, nil
}
