package devicemapper

import (
	"context"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/cow"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Grow makes a live disk larger: its file, and the devices when they are made. A Grow whose record
// was lost may be repeated.
func (d *Driver) Grow(ctx context.Context, live disk.Live, sizeBytes int64) (disk.Live, error) {
	if err := ctx.Err(); err != nil {
		return disk.Live{}, layerfile.Failed(err, "grow", live.Path)
	}
	if err := layerfile.CheckGrow(live, sizeBytes, maxSize); err != nil {
		return disk.Live{}, err
	}
	if _, err := checkFile(live.Path); err != nil {
		return disk.Live{}, err
	}
	if err := d.checkUnused("grow", live.Path); err != nil {
		return disk.Live{}, err
	}
	if err := enlarge(live.Path, cow.SizeFor(sizeBytes)); err != nil {
		return disk.Live{}, err
	}
	live.SizeBytes = sizeBytes
	return live, nil
}

// checkUnused refuses a file that a device writes to: the device would not see what is done to it,
// and goes on writing to what is called immutable.
func (d *Driver) checkUnused(op, path string) error {
	top, err := d.find(path)
	if err != nil || top == nil {
		return err
	}
	return fault.New(fault.FailedPrecondition, op, path, "device "+top.Name+" still writes to it").
		WithHint("end the VM first")
}

func (d *Driver) checkLayersUnused(op string, list []disk.Layer) error {
	for _, l := range list {
		if err := d.checkUnused(op, l.Path); err != nil {
			return err
		}
	}
	return nil
}

// images are open layers, bottom first.
type images struct {
	list  []*cow.Image
	files []*os.File
}

func (i *images) close() {
	for _, f := range i.files {
		_ = f.Close() // only read
	}
}

// openLayers opens sealed layers.
func openLayers(layers []disk.Layer) (*images, error) {
	all := &images{}
	for _, l := range layers {
		if err := all.add(l); err != nil {
			all.close()
			return nil, err
		}
	}
	return all, nil
}

func (i *images) add(l disk.Layer) error {
	f, err := layerfile.Open(l.Path, os.O_RDONLY)
	if err != nil {
		return err
	}
	i.files = append(i.files, f)
	img, err := cow.Open(f, l.SizeBytes)
	i.list = append(i.list, img)
	return err
}

// Merge writes layers into one: of each chunk the topmost layer's. Zeros that hide nothing are left
// out.
func (d *Driver) Merge(ctx context.Context, below disk.Stack, list []disk.Layer, dst string) (disk.Layer, error) {
	if len(list) == 0 {
		return disk.Layer{}, fault.New(fault.Invalid, "merge into", dst, "there are no layers")
	}
	whole := disk.Stack{Base: below.Base, Layers: append(append([]disk.Layer(nil), below.Layers...), list...)}
	if err := d.checkLayersUnused("merge", list); err != nil {
		return disk.Layer{}, err
	}
	src, err := openStack(ctx, whole, "merge")
	if err != nil {
		return disk.Layer{}, err
	}
	defer src.close()
	n := len(below.Layers)
	under := cow.Below{Base: src.base, BaseBytes: below.Base.SizeBytes, Layers: src.list[:n]}
	merged := disk.Layer{Path: dst, SizeBytes: whole.SizeBytes()}
	err = publish(ctx, dst, func(ctx context.Context, f *os.File) (err error) {
		if err := layerfile.VerifyAll(ctx, list); err != nil {
			return err
		}
		if err := cow.Merge(ctx, f, src.list[n:], under); err != nil {
			return err
		}
		merged.Sum, err = layerfile.Sum(ctx, f)
		return err
	})
	if err != nil {
		return disk.Layer{}, layerfile.Failed(err, "merge into", dst)
	}
	return merged, nil
}

// Flatten writes a stack as one sparse raw image.
func (d *Driver) Flatten(ctx context.Context, stack disk.Stack, dst string) (disk.Base, error) {
	if err := d.checkLayersUnused("flatten", stack.Layers); err != nil {
		return disk.Base{}, err
	}
	src, err := openStack(ctx, stack, "flatten")
	if err != nil {
		return disk.Base{}, err
	}
	defer src.close()
	flat := disk.Base{Path: dst, SizeBytes: stack.SizeBytes()}
	err = publish(ctx, dst, func(ctx context.Context, f *os.File) error {
		if err := layerfile.VerifyAll(ctx, stack.Layers); err != nil {
			return err
		}
		return cow.Flatten(ctx, f, src.base, stack.Base.SizeBytes, src.list, flat.SizeBytes)
	})
	if err != nil {
		return disk.Base{}, layerfile.Failed(err, "flatten into", dst)
	}
	return flat, nil
}

// source is an open stack.
type source struct {
	*images
	base *os.File
}

func (s *source) close() {
	s.images.close()
	_ = s.base.Close() // only read
}

func openStack(ctx context.Context, stack disk.Stack, op string) (*source, error) {
	if err := ctx.Err(); err != nil {
		return nil, layerfile.Failed(err, op, stack.Base.Path)
	}
	if err := stack.Check(); err != nil {
		return nil, err
	}
	if _, err := layerfile.CheckBase(stack.Base); err != nil {
		return nil, err
	}
	base, err := os.Open(stack.Base.Path)
	if err != nil {
		return nil, layerfile.Failed(err, "open base image", stack.Base.Path)
	}
	all, err := openLayers(stack.Layers)
	if err != nil {
		_ = base.Close()
		return nil, err
	}
	return &source{images: all, base: base}, nil
}

// publish is layerfile's, with a step at which a test has it fail.
func publish(ctx context.Context, dst string, write func(context.Context, *os.File) error) error {
	return layerfile.Publish(ctx, dst, func(ctx context.Context, f *os.File) error {
		if err := write(ctx, f); err != nil {
			return err
		}
		return failpoint.Hit("devicemapper.publish.link")
	})
}
