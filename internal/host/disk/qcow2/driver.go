package qcow2

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Driver keeps the disk contract with qcow2 files. It has no state: New is cheap, and any
// number may work side by side.
type Driver struct{}

var _ disk.Driver = Driver{}

// New returns the driver.
func New() Driver { return Driver{} }

// Name is how configuration and records call the driver.
func (Driver) Name() string { return "qcow2" }

// LivePath is where Open puts the live disk of that index.
func (Driver) LivePath(dir string, index int) string {
	return filepath.Join(dir, fmt.Sprintf("disk-%d.qcow2", index))
}

// Capabilities says that images are files and may be sealed under a running VM.
func (Driver) Capabilities() disk.Capabilities { return disk.Capabilities{LiveSeal: true} }

// Attach checks every image of the disk and returns how a VMM opens them.
func (Driver) Attach(ctx context.Context, live disk.Live) (disk.Attachment, error) {
	if err := ctx.Err(); err != nil {
		return disk.Attachment{}, layerfile.Failed(err, "attach", live.Path)
	}
	if _, err := checkStack(live.Stack); err != nil {
		return disk.Attachment{}, err
	}
	img, err := openImage(live.Path, live.SizeBytes, os.O_RDONLY)
	if err != nil {
		return disk.Attachment{}, err
	}
	img.close()
	return attachment(live), nil
}

func attachment(live disk.Live) disk.Attachment {
	nodes := []disk.Node{{Path: live.Stack.Base.Path, Format: "raw", ReadOnly: true}}
	for _, l := range live.Stack.Layers {
		nodes = append(nodes, disk.Node{Path: l.Path, Format: "qcow2", ReadOnly: true})
	}
	return disk.Attachment{Nodes: append(nodes, disk.Node{Path: live.Path, Format: "qcow2"})}
}

// checkStack checks every file of a stack and returns what identifies them.
func checkStack(stack disk.Stack) ([]os.FileInfo, error) {
	if err := stack.Check(); err != nil {
		return nil, err
	}
	base, err := layerfile.CheckBase(stack.Base)
	if err != nil {
		return nil, err
	}
	files := []os.FileInfo{base}
	for _, l := range stack.Layers {
		st, err := checkLayer(l)
		if err != nil {
			return nil, err
		}
		files = append(files, st)
	}
	return files, nil
}

func checkLayer(l disk.Layer) (os.FileInfo, error) {
	img, err := openImage(l.Path, l.SizeBytes, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer img.close()
	st, err := img.file.Stat()
	return st, layerfile.Failed(err, "open", l.Path)
}

// Detach has nothing to undo: an attachment is a list of names.
func (Driver) Detach(context.Context, disk.Live) error { return nil }

// RemoveLive deletes a live disk's file.
func (Driver) RemoveLive(_ context.Context, live disk.Live) error { return layerfile.Remove(live.Path) }

// RemoveLayer deletes a layer's file.
func (Driver) RemoveLayer(_ context.Context, l disk.Layer) error { return layerfile.Remove(l.Path) }

// Usage returns the bytes that the file's allocated blocks take.
func (Driver) Usage(path string) (int64, error) { return layerfile.Usage(path) }

// Verify compares a layer's file with its sum.
func (Driver) Verify(ctx context.Context, l disk.Layer) error { return layerfile.Verify(ctx, l) }
