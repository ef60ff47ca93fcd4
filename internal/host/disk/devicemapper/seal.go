package devicemapper

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/cow"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Seal turns a live disk into a layer, under a running VM when there is a Switch.
func (d *Driver) Seal(ctx context.Context, live disk.Live, nextIndex int, sw disk.Switch) (disk.Layer, *disk.Live, error) {
	if err := ctx.Err(); err != nil {
		return disk.Layer{}, nil, layerfile.Failed(err, "seal", live.Path)
	}
	f, err := layerfile.Open(live.Path, os.O_RDWR)
	if err != nil {
		return disk.Layer{}, nil, err
	}
	defer func() { _ = f.Close() }() // it was synced
	if err := cow.Check(f); err != nil {
		return disk.Layer{}, nil, err
	}
	layer := disk.Layer{Path: live.Path, SizeBytes: live.SizeBytes}
	if sw == nil {
		if layer.Sum, err = d.sealFile(ctx, f, layer); err != nil {
			return disk.Layer{}, nil, err
		}
		return layer, nil, nil
	}
	next, err := d.switchOver(ctx, live, layer, nextIndex, sw)
	if err != nil {
		return disk.Layer{}, next, err
	}
	if layer.Sum, err = d.sealFile(ctx, f, layer); err != nil {
		return disk.Layer{}, next, err
	}
	next.Stack = live.Stack.With(layer)
	return layer, next, nil
}

// sealFile makes the file a layer's and returns its sum. A paused VM may still have the device;
// what it has flushed is in the device's page cache at worst.
func (d *Driver) sealFile(ctx context.Context, f *os.File, layer disk.Layer) (string, error) {
	top, err := d.find(layer.Path)
	if err != nil {
		return "", err
	}
	if top != nil {
		if err := errors.Join(d.settle(top), d.flush(*top)); err != nil {
			return "", d.unwritten(*top, layer.Path, err)
		}
	}
	return layerfile.Seal(ctx, f, func() error {
		if err := d.trim(f, layer.SizeBytes, top); err != nil {
			return err
		}
		return failpoint.Hit("devicemapper.seal.sync")
	})
}

// unwritten says why what a VM wrote did not reach its file: most often the kernel has given the
// snapshot up, and said only "input/output error".
func (d *Driver) unwritten(top device, path string, err error) error {
	return errors.Join(d.checkValid(top, path), layerfile.Failed(err, "seal", path))
}

// flush writes a device's page cache to its file, and syncs that.
func (d *Driver) flush(v device) error {
	path, err := d.dm.Node(v.Info)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// checkValid is DataLoss when the kernel has given a snapshot up.
func (d *Driver) checkValid(v device, path string) error {
	status, err := d.dm.Status(v.Name)
	if err != nil {
		return err
	}
	for _, t := range status {
		if t.Type != "snapshot" {
			continue
		}
		s, err := dm.ParseSnapshotStatus(t.Params)
		if err != nil {
			return fault.Wrap(err, "look at", "device "+v.Name)
		}
		if s.Invalid {
			return layerfile.Lost("seal", path, cow.Invalid)
		}
	}
	return nil
}

// trim cuts a file off at its end, since its sum covers holes. A device that writes to it stands
// still meanwhile; when it goes on, its file grows again.
func (d *Driver) trim(f *os.File, size int64, top *device) (err error) {
	if top != nil {
		if err := d.dm.Suspend(top.Name, dm.SuspendOptions{}); err != nil {
			return err
		}
		defer func() {
			_, resumeErr := d.dm.Resume(top.Name)
			err = errors.Join(err, resumeErr)
		}()
		if err := d.checkValid(*top, f.Name()); err != nil {
			return err
		}
	}
	img, err := cow.Open(f, size)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() > img.End() {
		err = f.Truncate(img.End())
	}
	return errors.Join(err, failpoint.Hit("devicemapper.seal.trimmed"))
}

// switchOver makes the next live disk and puts it under the VM's device, or leaves that as it was.
// With an error, next is nil unless the VM writes to it already.
func (d *Driver) switchOver(ctx context.Context, live disk.Live, layer disk.Layer, index int, sw disk.Switch) (*disk.Live, error) {
	next, err := d.Open(ctx, live.Stack.With(layer), live.SizeBytes, filepath.Dir(live.Path), index)
	if err != nil {
		return nil, err
	}
	r := reload{
		builder: builder{Driver: d, ctx: ctx, names: d.names(next.Path), sectors: sectors(next.SizeBytes)},
		live:    live, next: next,
	}
	defer r.release()
	r.undo.Push("open "+next.Path, func(context.Context) error { return layerfile.Remove(next.Path) })
	if err := r.prepare(); err != nil {
		return nil, r.back(err)
	}
	if err := r.run(sw); err != nil {
		return nil, r.back(err)
	}
	if err := r.resume(); err != nil {
		return nil, r.back(err)
	}
	return &next, r.finish()
}

// reload is a Seal under a running VM.
type reload struct {
	builder
	live, next disk.Live
	chain      chain
	// changes are the loops of the new layer, to be read, and of the next disk.
	layer, changes uint64
}

func (r *reload) back(err error) error {
	return fault.Wrap(errors.Join(err, r.undo.Rollback(r.ctx)), "seal", "disk "+r.live.Path)
}

// prepare does what can be done while the VM writes.
func (r *reload) prepare() error {
	if err := failpoint.Hit("devicemapper.seal.opened"); err != nil {
		return err
	}
	top, err := r.find(r.live.Path)
	if err != nil {
		return err
	}
	if top == nil {
		return fault.New(fault.FailedPrecondition, "find device of", "disk "+r.live.Path, "it is not attached")
	}
	if err := r.settle(top); err != nil {
		return err
	}
	if r.chain, err = r.Driver.chain(*top); err != nil {
		return err
	}
	if err := r.clearNamed(r.ctx, r.next.Path); err != nil {
		return err
	}
	layer, err := r.acquire(r.live.Path, true)
	if err != nil {
		return err
	}
	changes, err := r.acquire(r.next.Path, false)
	if err != nil {
		return err
	}
	r.layer, r.changes = layer.Dev, changes.Dev
	if err := r.flush(*top); err != nil { // most of it, so that the suspend is short
		return r.unwritten(*top, r.live.Path, err)
	}
	return nil
}

// run suspends the device, puts the next table beside the live one and switches.
func (r *reload) run(sw disk.Switch) error {
	top := r.chain[0]
	r.undo.Push("suspend", func(context.Context) error { return r.goOn(top.Name) })
	if err := r.dm.Suspend(top.Name, dm.SuspendOptions{}); err != nil {
		return err
	}
	if err := r.checkValid(top, r.live.Path); err != nil {
		return err
	}
	if err := failpoint.Hit("devicemapper.seal.suspended"); err != nil {
		return err
	}
	// Now, not before: a snapshot reads its exceptions when its table is loaded.
	sealed, err := r.device(r.names.level(len(r.chain)-1), r.snapshot(top.below, r.layer), true)
	if err != nil {
		return err
	}
	r.undo.Push("load", func(context.Context) error { return r.dm.ClearTable(top.Name) })
	if err := r.dm.Load(r.ctx, top.Name, r.snapshot(sealed.Dev, r.changes), false); err != nil {
		return err
	}
	if err := failpoint.Hit("devicemapper.seal.loaded"); err != nil {
		return err
	}
	att, err := r.attachment(top.Info)
	if err != nil {
		return err
	}
	if err := sw(r.ctx, att); err != nil {
		return fault.Wrap(err, "switch VM to", r.next.Path)
	}
	return failpoint.Hit("devicemapper.seal.switched")
}

// goOn resumes a device whose other table was dropped.
func (r *reload) goOn(name string) error {
	_, err := r.dm.Resume(name)
	return err
}

// resume makes the next table live. When that fails, the kernel has kept the table that it had.
func (r *reload) resume() error {
	_, err := r.dm.Resume(r.chain[0].Name)
	return err
}

// finish gives the devices their new names: from here on there is no way back.
func (r *reload) finish() error {
	r.undo.Discard()
	if err := failpoint.Hit("devicemapper.seal.resumed"); err != nil {
		return layerfile.Failed(err, "seal", r.live.Path)
	}
	err := r.renameLevels()
	if err == nil {
		err = failpoint.Hit("devicemapper.seal.renamed")
	}
	return layerfile.Failed(err, "seal", r.live.Path)
}

// renameLevels renames the chain as it was; the new layer's device, which came between its top and
// the rest, has its name from the beginning.
func (r *reload) renameLevels() error {
	for i, v := range r.chain {
		name := r.names.top()
		if i > 0 {
			name = r.names.level(len(r.chain) - 1 - i)
		}
		if err := r.dm.Rename(v.Name, name); err != nil {
			return err
		}
	}
	return nil
}
