package qcow2

import (
	"context"
	"errors"
	"os"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Merge writes layers into one: of each cluster the topmost layer's, zeros as zeros, and what
// no layer has changed stays unchanged.
func (d Driver) Merge(ctx context.Context, below disk.Stack, list []disk.Layer, dst string) (disk.Layer, error) {
	if len(list) == 0 {
		return disk.Layer{}, fault.New(fault.Invalid, "merge into", dst, "there are no layers")
	}
	whole := disk.Stack{Base: below.Base, Layers: append(append([]disk.Layer(nil), below.Layers...), list...)}
	if err := whole.Check(); err != nil {
		return disk.Layer{}, err
	}
	ls, err := openLayers(list, "merge")
	if err != nil {
		return disk.Layer{}, err
	}
	defer ls.close()
	merged := disk.Layer{Path: dst, SizeBytes: whole.SizeBytes()}
	err = publish(ctx, dst, func(ctx context.Context, f *os.File) (err error) {
		if err := layerfile.VerifyAll(ctx, list); err != nil {
			return err
		}
		if err := merge(ctx, ls, f, merged.SizeBytes); err != nil {
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

func merge(ctx context.Context, ls *layers, f *os.File, size int64) error {
	w := newWriter(f, size)
	for n := range l1Entries(size) {
		if err := ls.load(n); err != nil {
			return err
		}
		if ls.empty() {
			continue
		}
		if err := mergeStretch(ctx, ls, w, n); err != nil {
			return err
		}
	}
	return w.finish()
}

func mergeStretch(ctx context.Context, ls *layers, w *writer, n int64) error {
	w.begin()
	for i := range clustersIn(n, w.size) {
		p, err := ls.find(i)
		if err != nil {
			return err
		}
		if !p.set {
			continue
		}
		if err := errors.Join(ctx.Err(), w.put(i, p)); err != nil {
			return err
		}
	}
	return w.end(n)
}
