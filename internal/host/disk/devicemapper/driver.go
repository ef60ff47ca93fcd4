package devicemapper

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/loop"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Options are what a driver needs to know.
type Options struct {
	// Installation is the 4-character id that all names on the host carry.
	Installation string
}

// Driver keeps the disk contract with device-mapper. It has no state but what the kernel has: any
// number may work side by side, and a new one takes over from one that died.
type Driver struct {
	prefix string // of device names: "roost-<id>-"
	uuid   string // of device UUIDs
	dm     *dm.Control
	loops  *loop.Registry
}

var (
	_ disk.Driver = (*Driver)(nil)
	_ disk.Mapper = (*Driver)(nil)
)

// New opens device-mapper; fault.FailedPrecondition where the kernel has none.
func New(o Options) (*Driver, error) {
	control, err := dm.Open()
	if err != nil {
		return nil, err
	}
	name := "roost-" + o.Installation
	return &Driver{
		prefix: name + "-", uuid: "ROOST-" + o.Installation + "-",
		dm: control, loops: loop.NewRegistry(name),
	}, nil
}

// Close closes device-mapper; disks stay attached.
func (d *Driver) Close() error { return d.dm.Close() }

// Name is how configuration and records call the driver.
func (*Driver) Name() string { return "device-mapper" }

// Capabilities says that attachments are devices and may be sealed under a running VM.
func (*Driver) Capabilities() disk.Capabilities {
	return disk.Capabilities{BlockDevice: true, LiveSeal: true}
}

// LivePath is where Open puts the live disk of that index.
func (*Driver) LivePath(dir string, index int) string {
	return filepath.Join(dir, fmt.Sprintf("disk-%d.cow", index))
}

// RemoveLayer deletes a layer's file.
func (*Driver) RemoveLayer(_ context.Context, l disk.Layer) error { return layerfile.Remove(l.Path) }

// Usage returns the bytes that the file's allocated blocks take.
func (*Driver) Usage(path string) (int64, error) { return layerfile.Usage(path) }

// Verify compares a layer's file with its sum.
func (*Driver) Verify(ctx context.Context, l disk.Layer) error { return layerfile.Verify(ctx, l) }
