package qcow2

import (
	"context"
	"errors"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Flatten writes a stack as one sparse raw image.
func (d Driver) Flatten(ctx context.Context, stack disk.Stack, dst string) (disk.Base, error) {
	if _, err := checkStack(stack); err != nil {
		return disk.Base{}, err
	}
	base, err := os.Open(stack.Base.Path)
	if err != nil {
		return disk.Base{}, layerfile.Failed(err, "open base image", stack.Base.Path)
	}
	defer func() { _ = base.Close() }()
	ls, err := openLayers(stack.Layers, "flatten")
	if err != nil {
		return disk.Base{}, err
	}
	defer ls.close()
	flat := disk.Base{Path: dst, SizeBytes: stack.SizeBytes()}
	err = publish(ctx, dst, func(ctx context.Context, f *os.File) error {
		if err := layerfile.VerifyAll(ctx, stack.Layers); err != nil {
			return err
		}
		fl := flattener{out: f, base: base, baseSize: stack.Base.SizeBytes, buf: make([]byte, clusterSize)}
		return fl.flatten(ctx, ls, flat.SizeBytes)
	})
	if err != nil {
		return disk.Base{}, layerfile.Failed(err, "flatten into", dst)
	}
	return flat, nil
}

// flattener copies what is not zeros into a file that begins as one hole.
type flattener struct {
	out      *os.File
	base     *os.File
	baseSize int64
	buf      []byte
}

func (fl *flattener) flatten(ctx context.Context, ls *layers, size int64) error {
	if err := fl.out.Truncate(size); err != nil {
		return err
	}
	for n := range l1Entries(size) {
		if err := ls.load(n); err != nil {
			return err
		}
		if err := fl.stretch(ctx, ls, n, size); err != nil {
			return err
		}
	}
	return nil
}

// stretch copies clusters of layers one by one, and what lies between them from the base.
func (fl *flattener) stretch(ctx context.Context, ls *layers, n, size int64) error {
	start := n * bytesPerL2
	fromBase, end := start, min(start+bytesPerL2, size)
	for i := range clustersIn(n, size) {
		p, err := ls.find(i)
		if err != nil {
			return err
		}
		if !p.set {
			continue
		}
		at := start + i*clusterSize
		if err := errors.Join(fl.copyBase(ctx, fromBase, at), fl.copyCluster(ctx, p, at)); err != nil {
			return err
		}
		fromBase = at + clusterSize
	}
	return fl.copyBase(ctx, fromBase, end)
}

func (fl *flattener) copyCluster(ctx context.Context, p place, at int64) error {
	if err := ctx.Err(); err != nil || p.offset == 0 {
		return err
	}
	b := fl.buf[:clusterSize]
	if err := layerfile.ReadPadded(p.image.file, b, p.offset); err != nil {
		return layerfile.Failed(err, "read", p.image.path)
	}
	return layerfile.WriteSparse(fl.out, b, at)
}

// copyBase copies the base's data between from and to, skipping its holes.
func (fl *flattener) copyBase(ctx context.Context, from, to int64) error {
	return layerfile.Failed(layerfile.Copy(ctx, fl.out, fl.base, from, min(to, fl.baseSize)), "copy base image", fl.base.Name())
}

// publish is layerfile's, with a step at which a test has it fail.
func publish(ctx context.Context, dst string, write func(context.Context, *os.File) error) error {
	return layerfile.Publish(ctx, dst, func(ctx context.Context, f *os.File) error {
		if err := write(ctx, f); err != nil {
			return err
		}
		return failpoint.Hit("qcow2.publish.link")
	})
}
