package devicemapper

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
	"github.com/roosthq/roost/internal/undo"
)

// The kinds of what is Mapped.
const (
	kindDevice = "device-mapper device"
	kindLoop   = "loop device"
)

// Mapped lists the devices of this installation, those that stand on others first, then its loop
// devices. A device's path is its own file's: the live disk's, a layer's, the base's.
func (d *Driver) Mapped(ctx context.Context) ([]disk.Mapped, error) {
	if err := ctx.Err(); err != nil {
		return nil, layerfile.Failed(err, "list", "devices")
	}
	all, err := d.devices()
	if err != nil {
		return nil, err
	}
	var list []disk.Mapped
	for _, v := range all {
		m := disk.Mapped{Kind: kindDevice, Name: v.Name, Used: len(holders(v)) > 0}
		l, err := d.loopOf(v)
		if err != nil {
			return nil, err
		}
		if l != nil && !l.Deleted {
			m.Path = l.Path
		}
		list = append(list, m)
	}
	loops, err := d.loops.List()
	if err != nil {
		return nil, err
	}
	for _, l := range loops {
		m := disk.Mapped{Kind: kindLoop, Name: l.Name, Used: l.Users > 0 || len(l.Holders) > 0}
		if !l.Deleted {
			m.Path = l.Path
		}
		list = append(list, m)
	}
	return list, nil
}

// devices lists all of ours, those that stand on others before these.
func (d *Driver) devices() (chain, error) {
	list, err := d.dm.List()
	if err != nil {
		return nil, err
	}
	var all chain
	below := map[uint64]uint64{}
	for _, e := range list {
		if !strings.HasPrefix(e.Name, d.prefix) {
			continue
		}
		v, err := d.look(e.Name)
		if err != nil {
			return nil, err
		}
		if v != nil {
			all, below[v.Dev] = append(all, *v), v.below
		}
	}
	height := func(v device) (n int) {
		for dev := v.Dev; below[dev] != 0 && n <= len(all); dev = below[dev] {
			n++
		}
		return n
	}
	slices.SortStableFunc(all, func(a, b device) int { return cmp.Compare(height(b), height(a)) })
	return all, nil
}

// Unmap removes a device or loop that nobody uses; one in use is fault.FailedPrecondition and
// stays. Nothing of another installation is ever removed.
func (d *Driver) Unmap(ctx context.Context, m disk.Mapped) error {
	if m.Kind == kindLoop {
		return d.loops.Detach(ctx, m.Name)
	}
	if m.Kind != kindDevice || !strings.HasPrefix(m.Name, d.prefix) {
		return fault.New(fault.Invalid, "remove", m.Kind+" "+m.Name, "it is not one of this installation's devices")
	}
	v, err := d.look(m.Name)
	if err != nil || v == nil {
		return err
	}
	if v.OpenCount > 0 {
		return fault.New(fault.FailedPrecondition, "remove", "device "+m.Name, "it is in use").
			WithHint(fmt.Sprintf("lsof /dev/dm-%d", v.Minor))
	}
	if err := d.settle(v); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, undo.Timeout)
	defer cancel()
	return d.dm.Remove(ctx, m.Name)
}
