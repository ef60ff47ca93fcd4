package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
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
		return disk.Live{}, failed(err, "create", live.Path)
	}
	if err := checkOpen(live); err != nil {
		return disk.Live{}, err
	}
	if err := createEmpty(live.Path, sizeBytes); err != nil {
		return disk.Live{}, failed(err, "create", live.Path)
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
	return checkNotOneOf(live.Path, files)
}

func checkNotOneOf(path string, files []os.FileInfo) error {
	old, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failed(err, "create", path)
	}
	for _, f := range files {
		if os.SameFile(old, f) {
			return fault.New(fault.Invalid, "create", path, "the disk is to stand on this very file").
				WithHint("use another index")
		}
	}
	return nil
}

// createEmpty writes a new image without data. A leftover is unlinked, not truncated: a VM
// that has not quite died may still hold it.
func createEmpty(path string, sizeBytes int64) error {
	if err := remove(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = writeEmpty(f, sizeBytes)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = failpoint.Hit("qcow2.open.written")
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
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
