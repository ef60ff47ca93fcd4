package qcow2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/undo"
)

// Seal turns a live disk into a layer, under a running VM when there is a Switch.
func (d Driver) Seal(ctx context.Context, live disk.Live, nextIndex int, sw disk.Switch) (disk.Layer, *disk.Live, error) {
	if err := ctx.Err(); err != nil {
		return disk.Layer{}, nil, failed(err, "seal", live.Path)
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
		return disk.Live{}, errors.Join(failed(err, "switch VM to", next.Path), remove(next.Path))
	}
	return next, nil
}

// seal makes the file read-only, the agent's own and durable, and returns its sum; one sync serves
// all three, as it is what a pause waits for, and the sum is made meanwhile. A full or failing
// disk leaves a live disk with the mode it had.
func (img *image) seal(ctx context.Context) (string, error) {
	var back undo.Stack
	sum, err := img.lockAndSync(ctx, &back)
	if err != nil {
		return "", failed(errors.Join(err, back.Rollback(ctx)), "seal", img.path)
	}
	return sum, nil
}

func (img *image) lockAndSync(ctx context.Context, back *undo.Stack) (made string, err error) {
	if err := img.lock(back); err != nil {
		return "", err
	}
	if err := failpoint.Hit("qcow2.seal.sync"); err != nil {
		return "", err
	}
	var both errgroup.Group
	both.Go(img.file.Sync)
	both.Go(func() (err error) {
		made, err = sum(ctx, img.file)
		return err
	})
	if err := both.Wait(); err != nil {
		return "", err
	}
	return made, syncDir(filepath.Dir(img.path))
}

func (img *image) lock(back *undo.Stack) error {
	st, err := img.file.Stat()
	if err != nil {
		return err
	}
	back.Push("mode", func(context.Context) error { return img.file.Chmod(st.Mode()) })
	if err := img.file.Chmod(0o400); err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	back.Push("owner", func(context.Context) error { return img.file.Chown(int(owner.Uid), int(owner.Gid)) })
	return img.file.Chown(os.Geteuid(), os.Getegid())
}
