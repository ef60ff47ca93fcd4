package doctor

import (
	"context"
	"os"

	"github.com/google/nftables"
)

// Tun is what taps are made of, which VMs need.
func Tun(context.Context) Finding {
	return device("tun", "/dev/net/tun", ": no VMs", "modprobe tun")
}

// Loop devices are what device-mapper's disks stand on, which Firecracker needs.
func Loop(context.Context) Finding {
	return device("loop", "/dev/loop-control", ": no device-mapper disks, so no Firecracker", "modprobe loop")
}

func device(name, path, without, hint string) Finding {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return warn(name, err.Error()+without, hint)
	}
	defer f.Close()
	return ok(name, path+" opens")
}

// NFTables hold the wall around every sandbox: without them no slot can be made.
func NFTables(context.Context) Finding {
	const hint = "modprobe nf_tables (and nft_masq, nft_ct, nft_reject_inet, nft_fib_inet), or a kernel with CONFIG_NF_TABLES_INET"
	conn, err := nftables.New()
	if err != nil {
		return fail("nf_tables", err.Error(), hint)
	}
	if _, err := conn.ListTables(); err != nil {
		return fail("nf_tables", "rules cannot be listed: "+err.Error(), hint)
	}
	return ok("nf_tables", "rules can be listed")
}

// Firewall looks for a chain of somebody else's that drops what is forwarded: a packet must pass all.
func Firewall(context.Context) Finding {
	conn, err := nftables.New()
	if err != nil {
		return warn("firewall", err.Error(), "see nf_tables")
	}
	chains, err := conn.ListChains()
	if err != nil {
		return warn("firewall", err.Error(), "see nf_tables")
	}
	for _, c := range chains {
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			return warn("firewall", "chain "+c.Name+" of table "+c.Table.Name+" drops forwarded packets: sandboxes may have DNS and no connections",
				"allow links that begin with `r` and the installation's id there: docs/operations.md, `Network on the host`")
		}
	}
	return ok("firewall", "no table drops forwarded packets by default")
}

// forwarding takes sandboxes' packets to the uplink.
func (s System) forwarding(context.Context) Finding {
	const name = "ip_forward"
	on, err := s.number("proc/sys/net/ipv4/ip_forward")
	switch {
	case err != nil:
		return warn(name, err.Error(), "mount /proc")
	case on == 0 && s.Serving:
		return fail(name, "0, though roost has set it: sandboxes have no connections",
			"sysctl -w net.ipv4.ip_forward=1, and find what puts it back (grep -r ip_forward /etc/sysctl.conf /etc/sysctl.d)")
	case on == 0:
		return ok(name, "0; `roost up` sets it")
	}
	return ok(name, "1")
}
