package restore

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// System is what a restore makes true in the kernel below the guest. There is one for each
// place: Kernel in a VM, Sentry in gVisor, Process anywhere else.
type System interface {
	Now() time.Time
	// SetClock makes the clock right, and says by how much it moved it, or fails.
	SetClock(time.Time) (moved time.Duration, err error)
	// AddEntropy makes the next random numbers ones that no copy of this guest draws.
	AddEntropy([]byte) error
	SetHostname(string) error
	Hostname() (string, error)
	// Grow makes the file system at mount fill its device.
	Grow(mount, device string) error
	// Sync writes the file system at mount to its device.
	Sync(mount string) error
}

// shared is what is done alike everywhere.
type shared struct{}

// Now reads the wall clock.
func (shared) Now() time.Time { return time.Now() }

// SetHostname sets the kernel's host name.
func (shared) SetHostname(name string) error {
	return fault.Wrap(unix.Sethostname([]byte(name)), "set host name", name)
}

// Hostname reads it.
func (shared) Hostname() (string, error) { return os.Hostname() }

// ahead is by how much to is ahead of the wall clock.
func ahead(to time.Time) time.Duration { return to.Round(0).Sub(time.Now().Round(0)) }

// Sync flushes one file system.
func (shared) Sync(mount string) error {
	f, err := os.Open(mount)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return fault.Wrap(unix.Syncfs(int(f.Fd())), "sync", mount)
}
