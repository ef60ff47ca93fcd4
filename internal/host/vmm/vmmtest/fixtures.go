package vmmtest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm/vmmtest/debian"
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
	unlock, err := debian.Lock("lock")
	if err != nil {
		return Fixtures{}, err
	}
	defer unlock()
	root, err := debian.Kernel()
	if err != nil {
		return Fixtures{}, err
	}
	kernel, err := debian.One(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return Fixtures{}, err
	}
	initrd := filepath.Join(debian.Cache(), "initrd.cpio")
	return Fixtures{Kernel: kernel, Initrd: initrd}, buildInitrd(filepath.Dir(file), root, initrd)
}

func run(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}
