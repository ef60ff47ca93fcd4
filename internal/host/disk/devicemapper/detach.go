package devicemapper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
	"github.com/roosthq/roost/internal/undo"
)

// Detach removes the disk's devices, the top first. Only the live disk's path is asked.
func (d *Driver) Detach(ctx context.Context, live disk.Live) error {
	return fault.Wrap(d.clear(ctx, live.Path), "detach", "disk "+live.Path)
}

// RemoveLive detaches a live disk and deletes its file.
func (d *Driver) RemoveLive(ctx context.Context, live disk.Live) error {
	if err := d.Detach(ctx, live); err != nil {
		return err
	}
	return layerfile.Remove(live.Path)
}

// Holds tells whether a block device is the top of a live disk.
func (d *Driver) Holds(_ context.Context, live disk.Live, at os.FileInfo) (bool, error) {
	if _, err := os.Stat(live.Path); err != nil {
		return false, layerfile.Failed(err, "look at", "disk "+live.Path)
	}
	number, block := blockNumber(at)
	if !block {
		return false, nil
	}
	top, err := d.find(live.Path)
	return err == nil && top != nil && top.Dev == number, err
}

// clear removes the chain of a live disk and what else has its names. It waits for who has them
// open as long as ctx allows, and a while at most.
func (d *Driver) clear(ctx context.Context, livePath string) error {
	ctx, cancel := context.WithTimeout(ctx, undo.Timeout)
	defer cancel()
	top, err := d.find(livePath)
	if err != nil {
		return err
	}
	if top != nil {
		if err := d.settle(top); err != nil {
			return err
		}
		c, err := d.chain(*top)
		if err != nil {
			return err
		}
		if err := d.remove(ctx, c); err != nil {
			return err
		}
	}
	return d.clearNamed(ctx, livePath)
}

// remove removes devices, each when those above it are gone. Where the kernel removes one later,
// it does so with those below: ctx has ended by then, so none of them is waited for.
func (d *Driver) remove(ctx context.Context, c chain) error {
	var errs []error
	for _, v := range c {
		err := d.dm.Remove(ctx, v.Name)
		if err == nil {
			err = failpoint.Hit("devicemapper.detach.removed")
		}
		if err != nil {
			errs = append(errs, err)
		}
		if err != nil && !errors.Is(err, dm.ErrDeferred) {
			break
		}
	}
	return errors.Join(errs...)
}

// clearNamed removes what has the names of a live disk's devices and is not in use by another: what
// a chain lost its top to, and devices of an older file of the same name.
func (d *Driver) clearNamed(ctx context.Context, livePath string) error {
	stale, err := d.named(d.names(livePath))
	if err != nil {
		return err
	}
	for _, v := range stale {
		used, err := d.usedElsewhere(v, livePath)
		if err != nil {
			return err
		}
		if used {
			continue
		}
		if err := d.settle(&v); err != nil {
			return err
		}
		if err := d.remove(ctx, chain{v}); err != nil {
			return err
		}
	}
	return nil
}

// named lists the devices with a live disk's names, in the order of removal.
func (d *Driver) named(n names) (chain, error) {
	list, err := d.dm.List()
	if err != nil {
		return nil, err
	}
	var c chain
	for _, e := range list {
		if e.Name != n.top() && !strings.HasPrefix(e.Name, n.top()+"-") {
			continue
		}
		v, err := d.look(e.Name)
		if err != nil {
			return nil, err
		}
		if v != nil {
			c = append(c, *v)
		}
	}
	slices.SortFunc(c, func(a, b device) int { return cmp.Compare(n.rank(a.Name), n.rank(b.Name)) })
	return c, nil
}

// rank orders a live disk's names top first.
func (n names) rank(name string) int {
	level := disk.MaxDepth + 1
	if name == n.top() {
		return -level
	}
	_, _ = fmt.Sscanf(name, n.top()+"-%d", &level)
	return -level
}

// usedElsewhere tells whether a device belongs to another disk's chain, whatever its name: another
// device stands on it, or it writes to a file that has a name of its own.
func (d *Driver) usedElsewhere(v device, livePath string) (bool, error) {
	if len(holders(v)) > 0 {
		return true, nil
	}
	if v.ReadOnly || v.cow == 0 {
		return false, nil
	}
	l, err := d.loopOf(v)
	if err != nil || l == nil || l.Deleted {
		return false, err
	}
	return l.Path != livePath, nil
}

// holders are the devices that stand on one.
func holders(v device) []os.DirEntry {
	entries, err := os.ReadDir(fmt.Sprintf("/sys/dev/block/%d:%d/holders", v.Major, v.Minor))
	if err != nil {
		return nil // gone meanwhile
	}
	return entries
}

// blockNumber is a block device's number.
func blockNumber(at os.FileInfo) (number uint64, block bool) {
	st, ok := at.Sys().(*syscall.Stat_t)
	if !ok || st.Mode&syscall.S_IFMT != syscall.S_IFBLK {
		return 0, false
	}
	return st.Rdev, true
}
