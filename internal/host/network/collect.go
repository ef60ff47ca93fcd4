package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/roosthq/roost/internal/fault"
)

// Collect removes every slot of this installation, whole or in part, that is neither in keep
// (slot number → sandbox, from the journals) nor in this Manager's hands: pooled, being made,
// or held. A held slot is its holder's to release, since its journal may be younger than keep.
func (m *Manager) Collect(ctx context.Context, keep map[int]string) error {
	leave, err := m.enter()
	if err != nil {
		return err
	}
	defer leave()
	present, err := m.host.present()
	if err != nil {
		return fault.Wrap(err, "collect", "slots")
	}
	var errs []error
	for n := range present {
		if _, kept := keep[n]; kept || !m.claimStray(n) {
			continue
		}
		err := m.host.remove(n)
		m.freeNumber(n, false)
		if err != nil {
			errs = append(errs, fmt.Errorf("remove slot %d: %w", n, err))
			continue
		}
		m.log.InfoContext(ctx, "removed stray slot", "slot", n)
	}
	m.wakePool()
	return fault.Wrap(errors.Join(errs...), "collect", "slots")
}

// Stray is what exists of a slot that nobody has.
type Stray struct {
	Slot int
	// Names of its namespaces and its link.
	Names []string
}

// Strays compares the host with keep without changing anything: what Collect would remove, and
// the numbers in keep of which nothing exists.
func (m *Manager) Strays(keep map[int]string) (strays []Stray, missing []int, err error) {
	leave, err := m.enter()
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	before := m.inUse()
	first, err := m.host.pieces()
	if err != nil {
		return nil, nil, fault.Wrap(err, "list", "slots")
	}
	// What was released since the list was made is gone by the second one.
	after := m.inUse()
	second, err := m.host.pieces()
	if err != nil {
		return nil, nil, fault.Wrap(err, "list", "slots")
	}
	for n, names := range first {
		if _, kept := keep[n]; kept || before[n] || after[n] || second[n] == nil {
			continue
		}
		strays = append(strays, Stray{Slot: n, Names: names})
	}
	for n := range keep {
		if first[n] == nil && second[n] == nil {
			missing = append(missing, n)
		}
	}
	slices.SortFunc(strays, func(a, b Stray) int { return a.Slot - b.Slot })
	slices.Sort(missing)
	return strays, missing, nil
}

func (m *Manager) inUse() map[int]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.busy)
}

// claimStray takes a number that nobody here has, so that nobody makes it meanwhile.
func (m *Manager) claimStray(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[n] {
		return false
	}
	m.busy[n] = true
	delete(m.occupied, n)
	return true
}

// Uninstall stops the Manager and removes everything of the installation from this host: all
// slots, used or not, the rules, the subnet's route, and forwarding if an installation turned
// it on and no other is left. It works on a Manager that was never started, and is idempotent.
func (m *Manager) Uninstall(ctx context.Context) error {
	m.Stop()
	h, err := openHost(names(m.opt.Installation), m.opt.HostNS)
	if err != nil {
		return fault.Wrap(err, "uninstall", "network")
	}
	defer h.close()
	st, err := loadState(m.opt.StateDir)
	if err != nil {
		return fault.Wrap(err, "read", stateName)
	}
	err = errors.Join(removeAll(ctx, h), removeReservation(h, st), restoreForwarding(h, st))
	if err == nil {
		err = removeState(m.opt.StateDir)
	}
	return fault.Wrap(err, "uninstall", "network")
}

func removeAll(ctx context.Context, h *host) error {
	present, err := h.present()
	errs := []error{err}
	for n := range present {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, h.remove(n))
	}
	return errors.Join(errs...)
}

func removeReservation(h *host, st state) error {
	if st.Subnet == "" {
		return nil
	}
	subnet, err := parseSubnet(st.Subnet)
	if err != nil {
		return err
	}
	return h.unreserve(subnet)
}

// restoreForwarding deletes the rules, and their mark, before it looks for others: of two
// installations that go at once, the later one sees none and puts the value back.
func restoreForwarding(h *host, st state) error {
	var others bool
	err := h.ns.do(func() (err error) {
		if err := deleteHostRules(h.names); err != nil {
			return err
		}
		others, _, err = otherInstallations(h.names)
		return err
	})
	if err != nil || others || st.ForwardingBoot == "" {
		return err
	}
	boot, err := bootID()
	if err != nil || boot != st.ForwardingBoot {
		return err
	}
	return h.setForwarding("0")
}
