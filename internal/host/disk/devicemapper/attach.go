package devicemapper

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/cow"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/loop"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
	"github.com/roosthq/roost/internal/undo"
)

// Attach makes the disk's devices, or finds them. Whatever else has their names, or this disk's
// file, is stale and removed first.
func (d *Driver) Attach(ctx context.Context, live disk.Live) (disk.Attachment, error) {
	if err := ctx.Err(); err != nil {
		return disk.Attachment{}, layerfile.Failed(err, "attach", live.Path)
	}
	files, err := checkStack(live.Stack)
	if err != nil {
		return disk.Attachment{}, err
	}
	info, err := checkFile(live.Path)
	if err != nil {
		return disk.Attachment{}, err
	}
	top, err := d.take(live, files)
	if err == nil && top == nil {
		top, err = d.make(ctx, live, info)
	}
	if err != nil {
		return disk.Attachment{}, fault.Wrap(err, "attach", "disk "+live.Path)
	}
	return d.attachment(*top)
}

func (d *Driver) attachment(top dm.Info) (disk.Attachment, error) {
	path, err := d.dm.Node(top)
	return disk.Attachment{Nodes: []disk.Node{{Path: path, Format: "raw"}}}, err
}

// take takes up the devices that the disk has already; nil when it has none that are right.
func (d *Driver) take(live disk.Live, files stackFiles) (*dm.Info, error) {
	top, err := d.find(live.Path)
	if err != nil || top == nil {
		return nil, err
	}
	if err := d.settle(top); err != nil {
		return nil, err
	}
	c, err := d.chain(*top)
	if err != nil {
		return nil, err
	}
	right, err := d.matches(c, live, files)
	if err == nil && !right && top.OpenCount > 0 {
		// Not stale: to clear it away would take a running VM's disk.
		err = fault.New(fault.FailedPrecondition, "use", "device "+top.Name,
			"somebody has it open, and it stands on other files than the disk is said to")
	}
	if err != nil || !right {
		return nil, err
	}
	return &top.Info, d.rename(c, d.names(live.Path))
}

// settle ends what an interrupted Seal began: a table that was not used is dropped, and the device
// goes on.
func (d *Driver) settle(v *device) error {
	if v.InactiveTable {
		if err := d.dm.ClearTable(v.Name); err != nil {
			return err
		}
	}
	if !v.Suspended || !v.LiveTable {
		return nil
	}
	info, err := d.dm.Resume(v.Name)
	if err == nil {
		v.Info = info
	}
	return err
}

// rename gives a chain's devices the names of a live disk.
func (d *Driver) rename(c chain, n names) error {
	for i := range c {
		name := n.top()
		if i > 0 {
			name = n.level(len(c) - 1 - i)
		}
		if c[i].Name == name {
			continue
		}
		if err := d.dm.Rename(c[i].Name, name); err != nil {
			return err
		}
		c[i].Name = name
	}
	return nil
}

// make clears what is stale and builds the chain anew.
func (d *Driver) make(ctx context.Context, live disk.Live, info os.FileInfo) (*dm.Info, error) {
	if info.Mode().Perm()&0o200 == 0 {
		return nil, fault.New(fault.FailedPrecondition, "open", live.Path, "it is sealed").
			WithHint("open a new disk over it")
	}
	if err := d.clear(ctx, live.Path); err != nil {
		return nil, err
	}
	if err := enlarge(live.Path, cow.SizeFor(live.SizeBytes)); err != nil {
		return nil, err
	}
	b := builder{Driver: d, ctx: ctx, names: d.names(live.Path), sectors: sectors(live.SizeBytes)}
	defer b.release()
	top, err := b.build(live)
	if err != nil {
		return nil, errors.Join(err, b.undo.Rollback(ctx))
	}
	return &top, nil
}

// enlarge gives a live disk's file the size that it needs: sealing cuts it off at its end, and a
// capture that failed makes it a live disk again.
func enlarge(path string, size int64) error {
	f, err := layerfile.Open(path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	st, err := f.Stat()
	if err == nil && st.Size() < size {
		err = f.Truncate(size)
	}
	return layerfile.Failed(err, "enlarge", path)
}

// builder builds a chain, bottom first.
type builder struct {
	*Driver
	ctx     context.Context
	names   names
	sectors uint64
	undo    undo.Stack
	loops   []*loop.Ref
}

func (b *builder) build(live disk.Live) (dm.Info, error) {
	if err := failpoint.Hit("devicemapper.attach.begun"); err != nil {
		return dm.Info{}, err
	}
	below, err := b.origin(live.Stack.Base)
	if err != nil {
		return dm.Info{}, err
	}
	for i, l := range live.Stack.Layers {
		if below, err = b.level(i+1, l.Path, below); err != nil {
			return dm.Info{}, err
		}
	}
	top, err := b.top(live.Path, below)
	if err != nil {
		return dm.Info{}, err
	}
	return top, failpoint.Hit("devicemapper.attach.built")
}

// origin is the base, and zeros up to the disk's size.
func (b *builder) origin(base disk.Base) (uint64, error) {
	var table []dm.Target
	have := sectors(base.SizeBytes)
	if have > 0 {
		ref, err := b.acquire(base.Path, true)
		if err != nil {
			return 0, err
		}
		table = append(table, dm.Linear(0, have, ref.Dev, 0))
	}
	if have < b.sectors {
		table = append(table, dm.Zero(have, b.sectors-have))
	}
	info, err := b.device(b.names.level(0), table, true)
	return info.Dev, err
}

// level is a layer over the device below.
func (b *builder) level(i int, path string, below uint64) (uint64, error) {
	if err := failpoint.Hit("devicemapper.attach.level"); err != nil {
		return 0, err
	}
	ref, err := b.acquire(path, true)
	if err != nil {
		return 0, err
	}
	info, err := b.device(b.names.level(i), b.snapshot(below, ref.Dev), true)
	return info.Dev, err
}

// top is the live disk's own device.
func (b *builder) top(path string, below uint64) (dm.Info, error) {
	if err := failpoint.Hit("devicemapper.attach.top"); err != nil {
		return dm.Info{}, err
	}
	ref, err := b.acquire(path, false)
	if err != nil {
		return dm.Info{}, err
	}
	return b.device(b.names.top(), b.snapshot(below, ref.Dev), false)
}

func (b *builder) snapshot(below, changes uint64) []dm.Target {
	return []dm.Target{dm.Snapshot(0, b.sectors, below, changes, true, cow.ChunkSectors)}
}

// acquire attaches a file to a loop, which a table has to take over before release.
func (b *builder) acquire(path string, readOnly bool) (*loop.Ref, error) {
	ref, err := b.Driver.loops.Acquire(b.ctx, path, readOnly)
	if err == nil {
		b.loops = append(b.loops, ref)
	}
	return ref, err
}

// release lets go of the loops: those that no table stands on clear themselves. Closing a
// descriptor cannot fail in a way that matters.
func (b *builder) release() {
	for _, ref := range b.loops {
		_ = ref.Release()
	}
}

func (b *builder) device(name string, table []dm.Target, readOnly bool) (dm.Info, error) {
	// Names change hands when a disk is sealed under its VM, a UUID never does: each is new.
	uuid := fmt.Sprintf("%s%s-%s", b.uuid, name[len(b.prefix):], rand.Text())
	info, err := b.dm.Make(b.ctx, name, uuid, table, readOnly)
	if err == nil {
		b.undo.Push("make device "+name, func(ctx context.Context) error { return b.dm.Remove(ctx, name) })
	}
	return info, err
}
