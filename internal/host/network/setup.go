package network

import (
	"errors"
	"hash/fnv"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// settle makes the host ready for slots: a reserved subnet, rules, forwarding. What must be put
// back later is on disk before it is changed.
func (m *Manager) settle() error {
	if err := os.MkdirAll(m.opt.StateDir, 0o700); err != nil {
		return err
	}
	st, err := loadState(m.opt.StateDir)
	if err != nil {
		return fault.Wrap(err, "read", stateName)
	}
	if st.Installation != "" && st.Installation != m.opt.Installation {
		return fault.New(fault.FailedPrecondition, "use", m.opt.StateDir, "it belongs to installation "+st.Installation)
	}
	st.Installation = m.opt.Installation
	subnet, err := m.settleSubnet(&st)
	if err != nil {
		return fault.Wrap(err, "reserve", "slot subnet")
	}
	m.subnet = subnet
	return fault.Wrap(m.settleRules(&st), "prepare", "host network")
}

// settleRules writes the rules before it turns forwarding on, mark included.
func (m *Manager) settleRules(st *state) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	on, err := m.host.forwarding()
	if err != nil {
		return err
	}
	var marked bool
	err = m.host.ns.do(func() (err error) {
		_, marked, err = otherInstallations(m.host.names)
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case !on || marked:
		st.ForwardingBoot = boot
	case st.ForwardingBoot != boot:
		st.ForwardingBoot = ""
	}
	if err := st.save(m.opt.StateDir); err != nil {
		return err
	}
	err = m.host.ns.do(func() error {
		return writeHostRules(m.host.names, m.subnet, st.ForwardingBoot != "")
	})
	if err != nil || on {
		return err
	}
	return m.host.setForwarding("1")
}

// settleSubnet finds the subnet to use, in this order: the kept one, the configured one, a
// free one. It is saved before it is reserved.
func (m *Manager) settleSubnet(st *state) (netip.Prefix, error) {
	if st.Subnet != "" {
		kept, err := parseSubnet(st.Subnet)
		if err != nil {
			return kept, err
		}
		if m.opt.Subnet == "" || m.opt.Subnet == st.Subnet {
			return kept, ignore(m.host.reserve(kept), unix.EEXIST)
		}
		if err := m.giveUpSubnet(kept); err != nil {
			return kept, err
		}
	}
	taken, err := m.host.taken()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, candidate := range m.candidates() {
		if slices.ContainsFunc(taken, candidate.Overlaps) {
			continue
		}
		st.Subnet = candidate.String()
		if err := st.save(m.opt.StateDir); err != nil {
			return candidate, err
		}
		err := m.host.reserve(candidate)
		if errors.Is(err, unix.EEXIST) {
			continue // another installation was faster
		}
		return candidate, err
	}
	if m.opt.Subnet != "" {
		return netip.Prefix{}, fault.New(fault.AlreadyExists, "use", "subnet "+m.opt.Subnet,
			"it overlaps an address or route of this host").WithHint("choose another subnet, or none to have one chosen")
	}
	return netip.Prefix{}, noFreeSubnet()
}

// giveUpSubnet leaves a subnet for the configured one, which slots in use do not survive.
func (m *Manager) giveUpSubnet(old netip.Prefix) error {
	present, err := m.host.present()
	if err != nil {
		return err
	}
	if len(present) > 0 {
		return fault.New(fault.FailedPrecondition, "change", "subnet to "+m.opt.Subnet,
			"slots of "+old.String()+" exist").WithHint("destroy or pause all sandboxes first")
	}
	return m.host.unreserve(old)
}

// candidates are the configured subnet alone, or every /18 that may be chosen, beginning at
// one that depends on the installation.
func (m *Manager) candidates() []netip.Prefix {
	if m.opt.Subnet != "" {
		p, _ := parseSubnet(m.opt.Subnet) // validated by New
		return []netip.Prefix{p}
	}
	hash := fnv.New32a()
	hash.Write([]byte(m.opt.Installation))
	count := uint32(1) << (subnetBits - subnetSpace.Bits())
	var out []netip.Prefix
	for i := range count {
		index := (hash.Sum32() + i) % count
		base := toUint(subnetSpace.Addr()) + index<<(32-subnetBits)
		if p := netip.PrefixFrom(fromUint(base), subnetBits); !p.Overlaps(GuestPrefix) {
			out = append(out, p)
		}
	}
	return out
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
