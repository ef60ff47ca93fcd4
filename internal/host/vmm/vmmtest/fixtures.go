package vmmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Fixtures are what the suite boots.
type Fixtures struct {
	Kernel, Initrd string
}

// modules are what the kernel needs for its virtio devices, in the order to load.
var modules = []string{
	"net/core/failover", "drivers/net/net_failover", "drivers/virtio/virtio_ring", "drivers/virtio/virtio",
	"drivers/virtio/virtio_mmio", "drivers/block/virtio_blk", "drivers/net/virtio_net",
	"drivers/char/hw_random/virtio-rng",
}

// kernelPackage depends on the kernel that is current.
const kernelPackage = "linux-image-cloud-amd64"

var build struct {
	once     sync.Once
	fixtures Fixtures
	err      error
}

// Build makes the fixtures once per process and machine.
func Build(t testing.TB) Fixtures {
	t.Helper()
	build.once.Do(func() { build.fixtures, build.err = buildFixtures() })
	require.NoError(t, build.err)
	return build.fixtures
}

func buildFixtures() (Fixtures, error) {
	_, file, _, _ := runtime.Caller(0)
	here := filepath.Dir(file)
	cache := filepath.Join(here, "..", "..", "..", "..", ".cache", "vmmtest")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Fixtures{}, err
	}
	unlock, err := lock(filepath.Join(cache, "lock")) // packages are tested side by side
	if err != nil {
		return Fixtures{}, err
	}
	defer unlock()
	root, err := unpackKernel(cache)
	if err != nil {
		return Fixtures{}, err
	}
	kernel, err := one(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return Fixtures{}, err
	}
	initrd := filepath.Join(cache, "initrd.cpio")
	return Fixtures{Kernel: kernel, Initrd: initrd}, buildInitrd(here, root, initrd)
}

func lock(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

func one(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s: %d files", pattern, len(found))
	}
	if err != nil {
		return "", err
	}
	return filepath.Clean(found[0]), nil
}

// unpackKernel downloads and unpacks the kernel unless an earlier run has; the folder appears
// complete or not at all.
func unpackKernel(cache string) (string, error) {
	root := filepath.Join(cache, "kernel")
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	work, err := os.MkdirTemp(cache, "unpack-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	name, err := kernelName()
	if err != nil {
		return "", err
	}
	if err := run(work, "apt-get", "-q", "download", name); err != nil {
		return "", err
	}
	deb, err := one(filepath.Join(work, "*.deb"))
	if err != nil {
		return "", err
	}
	if err := run(work, "dpkg-deb", "-x", deb, "root"); err != nil {
		return "", err
	}
	return root, os.Rename(filepath.Join(work, "root"), root)
}

var dependsLine = regexp.MustCompile(`Depends: (linux-image-\S+)`)

// kernelName asks apt, which on a fresh machine must fetch its lists first.
func kernelName() (string, error) {
	for _, update := range []bool{false, true} {
		if update {
			if err := run("/", "apt-get", "-q", "update"); err != nil {
				return "", err
			}
		}
		out, _ := exec.Command("apt-cache", "depends", kernelPackage).Output()
		if m := dependsLine.FindSubmatch(out); m != nil {
			return string(m[1]), nil
		}
	}
	return "", fmt.Errorf("apt knows no package %s", kernelPackage)
}

func run(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}
