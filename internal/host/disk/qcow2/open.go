package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Create makes a live disk over a base.
func (d Driver) Create(ctx context.Context, base disk.Base, sizeBytes int64, dir string, index int) (disk.Live, error) {
	return d.Open(ctx, disk.Stack{Base: base}, sizeBytes, dir, index)
}

// Open makes a live disk over a stack. The file is not synced: until it is sealed, nothing
// durable stands on it.
func (d Driver) Open(ctx context.Context, stack disk.Stack, sizeBytes int64, dir string, index int) (disk.Live, error) {
	live := disk.Live{Stack: stack, Path: d.LivePath(dir, index), SizeBytes: sizeBytes}
	if err := ctx.Err(); err != nil {
		return disk.Live{}, layerfile.Failed(err, "create", live.Path)
	}
	if err := checkOpen(live); err != nil {
		return disk.Live{}, err
	}
	if err := createEmpty(live.Path, sizeBytes); err != nil {
		return disk.Live{}, err
	}
	return live, nil
}

// checkOpen checks sizes and files, and that the new file would not replace one that it is to
// stand on.
func checkOpen(live disk.Live) error {
	if err := live.Stack.CheckOpen(live.SizeBytes); err != nil {
		return err
	}
	if live.SizeBytes > maxSize {
		return fault.New(fault.Invalid, "create", live.Path, fmt.Sprintf("%d bytes are more than the largest disk, %d", live.SizeBytes, maxSize))
	}
	files, err := checkStack(live.Stack)
	if err != nil {
		return err
	}
	return layerfile.CheckNotOneOf(live.Path, files)
}

// createEmpty writes a new image without data.
func createEmpty(path string, sizeBytes int64) error {
	return layerfile.Create(path, func(f *os.File) error {
		if err := writeEmpty(f, sizeBytes); err != nil {
			return err
		}
		return failpoint.Hit("qcow2.open.written")
	})
}

// writeEmpty writes header, refcounts and an empty L1 table: four clusters, mostly holes.
func writeEmpty(f *os.File, sizeBytes int64) error {
	const refTable, refBlock, l1, end = 1 * clusterSize, 2 * clusterSize, 3 * clusterSize, 4 * clusterSize
	h := header{size: sizeBytes, l1Size: l1Entries(sizeBytes), l1Offset: l1, refTableOffset: refTable, refTableClusters: 1}
	if err := f.Truncate(end); err != nil {
		return err
	}
	if _, err := f.WriteAt(refcounts(end/clusterSize), refBlock); err != nil {
		return err
	}
	if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, refBlock), refTable); err != nil {
		return err
	}
	_, err := f.WriteAt(h.encode(), 0)
	return err
}

// refcounts is the start of a refcount block: n clusters that are used once.
func refcounts(n int64) []byte {
	b := make([]byte, 0, 2*n)
	for range n {
		b = append(b, 0, 1)
	}
	return b
}
