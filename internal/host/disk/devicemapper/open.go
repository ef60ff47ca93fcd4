package devicemapper

import (
	"context"
	"fmt"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/cow"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// maxSize is what file systems take as one file.
const maxSize = 4 << 40

// Create makes a live disk over a base.
func (d *Driver) Create(ctx context.Context, base disk.Base, sizeBytes int64, dir string, index int) (disk.Live, error) {
	return d.Open(ctx, disk.Stack{Base: base}, sizeBytes, dir, index)
}

// Open makes a live disk over a stack: a sparse file. Devices are Attach's.
func (d *Driver) Open(ctx context.Context, stack disk.Stack, sizeBytes int64, dir string, index int) (disk.Live, error) {
	live := disk.Live{Stack: stack, Path: d.LivePath(dir, index), SizeBytes: sizeBytes}
	if err := ctx.Err(); err != nil {
		return disk.Live{}, layerfile.Failed(err, "create", live.Path)
	}
	if err := checkOpen(live); err != nil {
		return disk.Live{}, err
	}
	if err := createFile(live); err != nil {
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
		cause := fmt.Sprintf("%d bytes are more than the largest disk, %d", live.SizeBytes, int64(maxSize))
		return fault.New(fault.Invalid, "create", live.Path, cause)
	}
	files, err := checkStack(live.Stack)
	if err != nil {
		return err
	}
	return layerfile.CheckNotOneOf(live.Path, files.all())
}

// createFile writes an empty file. A device that still has a leftover of that name keeps the old
// file, without a name, until Attach finds it.
func createFile(live disk.Live) error {
	tail, err := tailOf(live.Stack)
	if err != nil {
		return err
	}
	return layerfile.Create(live.Path, func(f *os.File) error {
		if err := cow.Create(f, live.SizeBytes, tail); err != nil {
			return err
		}
		return failpoint.Hit("devicemapper.open.written")
	})
}

// tailOf is what the first file over a base has of it from the beginning; nil for most.
func tailOf(stack disk.Stack) (*cow.Chunk, error) {
	if len(stack.Layers) > 0 {
		return nil, nil //nolint:nilnil // no tail is a fact, not a failure
	}
	f, err := os.Open(stack.Base.Path)
	if err != nil {
		return nil, layerfile.Failed(err, "open base image", stack.Base.Path)
	}
	defer func() { _ = f.Close() }() // only read
	return cow.Tail(f, stack.Base.SizeBytes)
}
