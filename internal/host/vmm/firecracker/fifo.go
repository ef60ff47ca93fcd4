package firecracker

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	consoleFIFO = "console.fifo"
	// fifoSize is what waits while no agent reads.
	fifoSize = 1 << 20
)

// makeFIFO makes the console's FIFO and returns the end that the VMM inherits: open for both, so that
// it always has a reader, and non-blocking, so that a guest that prints never waits.
func makeFIFO(dir string) (*os.File, error) {
	path := filepath.Join(dir, consoleFIFO)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fault.Wrap(err, "make", "console FIFO")
	}
	// Not by os.OpenFile, whose File would be made blocking when it is passed on.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fault.Wrap(err, "open", "console FIFO")
	}
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, fifoSize) // else it is the usual 64 KiB
	return os.NewFile(uintptr(fd), path), nil
}

// openFIFO opens the agent's end. It ends with the VMM.
func openFIFO(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, consoleFIFO), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	return f, fault.Wrap(err, "open", "console FIFO")
}

func removeFIFO(dir string) error {
	err := os.Remove(filepath.Join(dir, consoleFIFO))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fault.Wrap(err, "remove", "console FIFO")
}
