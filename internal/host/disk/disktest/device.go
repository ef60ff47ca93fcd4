package disktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/disk"
)

// device is a VM without a guest or a VMM: it uses the attachment's block device as a VMM would that
// passes the guest's requests on. It goes past the page cache, so that a write is acknowledged
// when the device has it; a cache would outlive Kill as it outlives a real VMM.
type device struct {
	mu   sync.RWMutex // over a switch
	path string
	file *os.File
	size int64
}

// OpenDevice opens an attachment that is a block device.
func OpenDevice(t testing.TB, att disk.Attachment) VM {
	require.Len(t, att.Nodes, 1)
	require.Equal(t, "raw", att.Nodes[0].Format)
	require.False(t, att.Nodes[0].ReadOnly)
	d := &device{}
	t.Cleanup(d.Kill)
	require.NoError(t, d.open(att.Nodes[0].Path))
	return d
}

func (d *device) open(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.path, d.file, d.size = path, f, size
	return nil
}

func (d *device) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.size
}

func (d *device) ReadAt(b []byte, offset int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.transfer(b, offset, func(direct, b []byte, offset int64) (int, error) {
		n, err := d.file.ReadAt(direct, offset)
		return copy(b, direct[:n]), err
	})
}

func (d *device) WriteAt(b []byte, offset int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.transfer(b, offset, func(direct, b []byte, offset int64) (int, error) {
		copy(direct, b)
		return d.file.WriteAt(direct, offset)
	})
}

// transfer moves b through memory that direct I/O takes.
func (d *device) transfer(b []byte, offset int64, do func(direct, b []byte, offset int64) (int, error)) (int, error) {
	if d.file == nil {
		return 0, os.ErrClosed
	}
	done, buf := 0, aligned(min(len(b), mb))
	for done < len(b) {
		part := b[done:min(done+len(buf), len(b))]
		n, err := do(buf[:len(part)], part, offset+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// aligned is memory that begins at a page.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := page - int(uintptr(unsafe.Pointer(&b[0]))%page)
	return b[skip : skip+n]
}

func (d *device) Flush() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.file == nil {
		return os.ErrClosed
	}
	return d.file.Sync()
}

func (d *device) Zero(offset, n int64) error { return d.span(unix.BLKZEROOUT, offset, n) }

// Discard is a hint; a device need not take it.
func (d *device) Discard(offset, n int64) error {
	err := d.span(unix.BLKDISCARD, offset, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func (d *device) span(request uint, offset, n int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.file == nil {
		return os.ErrClosed
	}
	span := [2]uint64{uint64(offset), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), uintptr(request), uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return fmt.Errorf("ioctl %#x on %s: %w", request, d.path, errno)
	}
	return nil
}

// Switch goes on to the next device, which often is the same one.
func (d *device) Switch(_ context.Context, next disk.Attachment) error {
	if len(next.Nodes) != 1 {
		return fmt.Errorf("switch to %v: it is not one device", next.Nodes)
	}
	if next.Nodes[0].Path == d.path {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.file
	if err := d.open(next.Nodes[0].Path); err != nil {
		return err
	}
	return old.Close()
}

func (d *device) Close() error {
	if err := d.Flush(); err != nil {
		return err
	}
	return d.letGo()
}

func (d *device) Kill() { _ = d.letGo() } // what a VMM that was killed could not flush either

func (d *device) letGo() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return nil
	}
	f := d.file
	d.file = nil
	return f.Close()
}
