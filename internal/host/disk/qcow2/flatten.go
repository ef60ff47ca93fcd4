package qcow2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/disk"
)

// holeSize is the grain at which a flattened image keeps zeros as holes: a file system block.
const holeSize = 4096

// Flatten writes a stack as one sparse raw image.
func (d Driver) Flatten(ctx context.Context, stack disk.Stack, dst string) (disk.Base, error) {
	if _, err := checkStack(stack); err != nil {
		return disk.Base{}, err
	}
	base, err := os.Open(stack.Base.Path)
	if err != nil {
		return disk.Base{}, failed(err, "open base image", stack.Base.Path)
	}
	defer func() { _ = base.Close() }()
	ls, err := openLayers(stack.Layers, "flatten")
	if err != nil {
		return disk.Base{}, err
	}
	defer ls.close()
	flat := disk.Base{Path: dst, SizeBytes: stack.SizeBytes()}
	err = publish(ctx, dst, func(ctx context.Context, f *os.File) error {
		if err := d.verifyAll(ctx, stack.Layers); err != nil {
			return err
		}
		fl := flattener{out: f, base: base, baseSize: stack.Base.SizeBytes, buf: make([]byte, clusterSize)}
		return fl.flatten(ctx, ls, flat.SizeBytes)
	})
	if err != nil {
		return disk.Base{}, failed(err, "flatten into", dst)
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
	if err := readPadded(p.image.file, b, p.offset); err != nil {
		return failed(err, "read", p.image.path)
	}
	return writeSparse(fl.out, b, at)
}

// copyBase copies the base's data between from and to, skipping its holes.
func (fl *flattener) copyBase(ctx context.Context, from, to int64) error {
	to = min(to, fl.baseSize)
	for from < to {
		data, hole, err := nextData(fl.base, from, to)
		if err != nil {
			return failed(err, "read base image", fl.base.Name())
		}
		for at := data; at < hole; at += clusterSize {
			b := fl.buf[:min(clusterSize, hole-at)]
			if err := errors.Join(ctx.Err(), readPadded(fl.base, b, at), writeSparse(fl.out, b, at)); err != nil {
				return err
			}
		}
		from = hole
	}
	return nil
}

// nextData returns the next stretch of data at or after from, within to; to and to for none.
func nextData(f *os.File, from, to int64) (data, hole int64, err error) {
	data, err = f.Seek(from, unix.SEEK_DATA)
	if errors.Is(err, syscall.ENXIO) || err == nil && data >= to {
		return to, to, nil
	}
	if err != nil {
		return 0, 0, err
	}
	hole, err = f.Seek(data, unix.SEEK_HOLE)
	return data, min(hole, to), err
}

// writeSparse writes b at offset but for the blocks that are all zeros.
func writeSparse(w io.WriterAt, b []byte, offset int64) error {
	for start := 0; start < len(b); {
		end := start
		for end < len(b) && !isZero(block(b, end)) {
			end += len(block(b, end))
		}
		if end > start {
			if _, err := w.WriteAt(b[start:end], offset+int64(start)); err != nil {
				return err
			}
		}
		start = end + holeSize // The block at end, if there is one, is a hole.
	}
	return nil
}

func block(b []byte, at int) []byte { return b[at:min(at+holeSize, len(b))] }

var zeros [clusterSize]byte

// isZero is for slices of up to a cluster.
func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
