package restore

import (
	"encoding/binary"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Kernel is the System of a VM.
type Kernel struct{ shared }

// clockTolerance: a clock this near is left alone, since every step is seen by user programs.
const clockTolerance = time.Millisecond

// SetClock sets the wall clock.
func (Kernel) SetClock(t time.Time) (time.Duration, error) {
	off := ahead(t)
	if off.Abs() < clockTolerance {
		return 0, nil
	}
	spec := unix.NsecToTimespec(t.UnixNano())
	return off, fault.Wrap(unix.ClockSettime(unix.CLOCK_REALTIME, &spec), "set", "clock")
}

// AddEntropy uses RNDADDENTROPY and RNDRESEEDCRNG: writing to /dev/urandom would mix the bytes
// in without crediting them, and copies of one VM would go on alike until the next reseed.
func (Kernel) AddEntropy(b []byte) error {
	const rndAddEntropy, rndReseedCRNG = 0x40085203, 0x5207
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	pool := binary.NativeEndian.AppendUint32(nil, uint32(len(b)*8))
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(b)))
	pool = append(pool, b...)
	if err := ioctl(f, rndAddEntropy, unsafe.Pointer(&pool[0])); err != nil {
		return fault.Wrap(err, "add entropy to", "/dev/urandom")
	}
	return fault.Wrap(ioctl(f, rndReseedCRNG, nil), "reseed", "/dev/urandom")
}

// Grow resizes a mounted ext4 to its block device.
func (Kernel) Grow(mount, device string) error {
	const ext4ResizeFS = 0x40086610
	size, err := deviceBytes(device)
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mount, &fs); err != nil {
		return fault.Wrap(err, "stat file system", mount)
	}
	root, err := os.Open(mount)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	blocks := size / uint64(fs.Bsize)
	return fault.Wrap(ioctl(root, ext4ResizeFS, unsafe.Pointer(&blocks)), "grow file system on", device)
}

func deviceBytes(device string) (uint64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, fault.Wrap(err, "open", device)
	}
	defer func() { _ = f.Close() }()
	var size uint64
	err = ioctl(f, unix.BLKGETSIZE64, unsafe.Pointer(&size))
	return size, fault.Wrap(err, "read size of", device)
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}
