package qcow2

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Seal turns a live disk into a layer, under a running VM when there is a Switch.
func (d Driver) Seal(ctx context.Context, live disk.Live, nextIndex int, sw disk.Switch) (disk.Layer, *disk.Live, error) {
	if err := ctx.Err(); err != nil {
		return disk.Layer{}, nil, layerfile.Failed(err, "seal", live.Path)
	}
	img, err := openImage(live.Path, live.SizeBytes, os.O_RDWR)
	if err != nil {
		return disk.Layer{}, nil, err
	}
	defer img.close()
	layer := disk.Layer{Path: live.Path, SizeBytes: live.SizeBytes}
	if sw == nil {
		if layer.Sum, err = img.seal(ctx); err != nil {
			return disk.Layer{}, nil, err
		}
		return layer, nil, nil
	}
	next, err := d.switchOver(ctx, live, layer, nextIndex, sw)
	if err != nil {
		return disk.Layer{}, nil, err
	}
	if layer.Sum, err = img.seal(ctx); err != nil {
		return disk.Layer{}, &next, err
	}
	next.Stack = live.Stack.With(layer)
	return layer, &next, nil
}

// switchOver makes the next live disk and has the VM use it, or leaves the VM where it was.
func (d Driver) switchOver(ctx context.Context, live disk.Live, layer disk.Layer, index int, sw disk.Switch) (disk.Live, error) {
	next, err := d.Open(ctx, live.Stack.With(layer), live.SizeBytes, filepath.Dir(live.Path), index)
	if err != nil {
		return disk.Live{}, err
	}
	if err := sw(ctx, attachment(next)); err != nil {
		return disk.Live{}, errors.Join(layerfile.Failed(err, "switch VM to", next.Path), layerfile.Remove(next.Path))
	}
	return next, nil
}

// seal makes the file a layer's and returns its sum.
func (img *image) seal(ctx context.Context) (string, error) {
	return layerfile.Seal(ctx, img.file, func() error { return failpoint.Hit("qcow2.seal.sync") })
}
