package devicemapper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/undo"
)

// A probe's base ends within its disk, so that all targets are needed: linear, zero, snapshot.
const (
	probeBaseBytes = disk.SizeUnit
	probeDiskBytes = 4 * disk.SizeUnit
	probeBlock     = 4096
)

// Probe does what every sandbox's disk does, in a directory of its own below dir: a snapshot over two
// loops and zeros, read through and written to, and removed. nil: disks work here.
func (d *Driver) Probe(ctx context.Context, dir string) (err error) {
	var steps undo.Stack
	defer func() {
		err = errors.Join(err, steps.Rollback(ctx))
		err = fault.Wrap(err, "try", "device-mapper in "+dir)
	}()
	dir, err = os.MkdirTemp(dir, "roost-dm-probe-")
	if err != nil {
		return err
	}
	steps.Push("remove probe directory", func(context.Context) error { return os.RemoveAll(dir) })
	pattern := bytes.Repeat([]byte("roost's base. "), probeBaseBytes/14+1)[:probeBaseBytes]
	base := disk.Base{Path: filepath.Join(dir, "base"), SizeBytes: probeBaseBytes}
	if err := os.WriteFile(base.Path, pattern, 0o400); err != nil {
		return err
	}
	live, err := d.Create(ctx, base, probeDiskBytes, dir, 0)
	if err != nil {
		return err
	}
	steps.Push("remove probe disk", func(ctx context.Context) error { return d.RemoveLive(ctx, live) })
	att, err := d.Attach(ctx, live)
	if err != nil {
		return err
	}
	return useProbe(att.Nodes[0].Path, pattern)
}

// useProbe reads base and zeros through the device, writes over both, and reads that.
func useProbe(node string, pattern []byte) error {
	f, err := os.OpenFile(node, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	want := append(bytes.Clone(pattern), make([]byte, probeDiskBytes-len(pattern))...)
	err = readsAs(f, want)
	for _, at := range []int{0, probeDiskBytes - probeBlock} {
		if err == nil {
			copy(want[at:], bytes.Repeat([]byte{0xa5}, probeBlock))
			err = write(f, want[at:at+probeBlock], int64(at))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = readsAs(f, want)
	}
	return errors.Join(err, f.Close())
}

func write(f *os.File, data []byte, at int64) error {
	block, err := aligned(len(data))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(block) }()
	copy(block, data)
	_, err = f.WriteAt(block, at)
	return err
}

// aligned is memory for I/O past the page cache, which would answer in the device's place.
func aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

func readsAs(f *os.File, want []byte) error {
	got, err := aligned(len(want))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(got) }()
	if _, err := f.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s has other content than was written", f.Name())
	}
	return nil
}
