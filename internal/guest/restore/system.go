package restore

import (
	"encoding/binary"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// System is what a restore changes in the kernel. Kernel does it in a VM; Given is for where
// the runtime around the guest keeps time, random source and host name true by itself (gVisor,
// tests), and the guest only looks.
type System interface {
	Now() time.Time
	SetClock(time.Time) error
	// AddEntropy mixes in bytes, credits them and makes the generator use them at once.
	AddEntropy([]byte) error
	SetHostname(string) error
	Hostname() (string, error)
	// Grow makes the file system at mount fill its device.
	Grow(mount, device string) error
	// Sync writes the file system at mount to its device.
	Sync(mount string) error
}

// Kernel is the System of a VM.
type Kernel struct{}

// Now reads the wall clock.
func (Kernel) Now() time.Time { return time.Now() }

// SetClock sets the wall clock.
func (Kernel) SetClock(t time.Time) error {
	spec := unix.NsecToTimespec(t.UnixNano())
	return fault.Wrap(unix.ClockSettime(unix.CLOCK_REALTIME, &spec), "set", "clock")
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

// SetHostname sets the kernel's host name.
func (Kernel) SetHostname(name string) error {
	return fault.Wrap(unix.Sethostname([]byte(name)), "set host name", name)
}

// Hostname reads it.
func (Kernel) Hostname() (string, error) { return os.Hostname() }

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

// Sync flushes one file system.
func (Kernel) Sync(mount string) error {
	f, err := os.Open(mount)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return fault.Wrap(unix.Syncfs(int(f.Fd())), "sync", mount)
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

// Given changes nothing: see System.
type Given struct{}

// Now reads the wall clock.
func (Given) Now() time.Time { return time.Now() }

// SetClock leaves the clock.
func (Given) SetClock(time.Time) error { return nil }

// AddEntropy leaves the random source.
func (Given) AddEntropy([]byte) error { return nil }

// SetHostname leaves the host name.
func (Given) SetHostname(string) error { return nil }

// Hostname reads it.
func (Given) Hostname() (string, error) { return os.Hostname() }

// Grow has no device to fill.
func (Given) Grow(string, string) error { return nil }

// Sync flushes one file system.
func (Given) Sync(mount string) error { return Kernel{}.Sync(mount) }
