package qcow2

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// qemuWriterByte is the byte that a QEMU locks in every image it has permission to write
// (QEMU's block/file-posix.c: RAW_LOCK_PERM_BASE 100 and the bit of BLK_PERM_WRITE).
const qemuWriterByte = 101

// checkUnused refuses an image that a running QEMU writes to: it may hold tables that are not
// in the file yet, and would go on writing to what is called immutable.
func (img *image) checkUnused(op string) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: qemuWriterByte, Len: 1}
	err := unix.FcntlFlock(img.file.Fd(), unix.F_OFD_GETLK, &lock)
	if err != nil {
		return layerfile.Failed(err, op, img.path)
	}
	if lock.Type != unix.F_UNLCK {
		return fault.New(fault.FailedPrecondition, op, img.path, "a VM still writes to it").
			WithHint("end the VM first")
	}
	return nil
}
