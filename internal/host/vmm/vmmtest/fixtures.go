package vmmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest/debian"
)

// Fixtures are what the suite boots.
type Fixtures struct {
	// Kernel is a bzImage, KernelELF the same uncompressed.
	Kernel, KernelELF, Initrd string
}

// kernelFor is the kernel in the form that a driver takes.
func (f Fixtures) kernelFor(c vmm.Capabilities) string {
	if c.ELFKernel {
		return f.KernelELF
	}
	return f.Kernel
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
	f, err := Prepare()
	require.NoError(t, err)
	return f
}

// Prepare is Build for who runs tests elsewhere: where there is no Go, what it has made before, at
// the same paths, is what there is.
func Prepare() (Fixtures, error) {
	build.once.Do(func() {
		if _, err := exec.LookPath("go"); err != nil {
			build.fixtures, build.err = made()
			return
		}
		build.fixtures, build.err = buildFixtures()
	})
	return build.fixtures, build.err
}

// made are the fixtures by their names.
func made() (Fixtures, error) {
	root, err := debian.Kernel()
	if err != nil {
		return Fixtures{}, err
	}
	kernel, err := debian.One(filepath.Join(root, "boot", "vmlinuz-*"))
	cache := debian.Cache()
	return Fixtures{Kernel: kernel, KernelELF: filepath.Join(cache, "vmlinux"), Initrd: filepath.Join(cache, "initrd.cpio")}, err
}

func buildFixtures() (Fixtures, error) {
	_, file, _, _ := runtime.Caller(0)
	unlock, err := debian.Lock("lock")
	if err != nil {
		return Fixtures{}, err
	}
	defer unlock()
	f, err := made()
	if err != nil {
		return Fixtures{}, err
	}
	return f, errors.Join(extractELF(f.Kernel, f.KernelELF), buildInitrd(filepath.Dir(file), filepath.Dir(filepath.Dir(f.Kernel)), f.Initrd))
}

// Where a bzImage has its kernel (Documentation/arch/x86/boot.rst).
const (
	setupSectors  = 0x1f1
	payloadOffset = 0x248
	payloadLength = 0x24c
)

// extractELF unpacks Debian's kernel, which is packed by lz4, unless that was done since it is there.
// Package image does it for real; no VMM may know that one.
func extractELF(bzImage, to string) error {
	from, err := os.Stat(bzImage)
	if err != nil {
		return err
	}
	if have, err := os.Stat(to); err == nil && have.ModTime().Equal(from.ModTime()) {
		return nil
	}
	raw, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	at := (int(raw[setupSectors])+1)*512 + int(binary.LittleEndian.Uint32(raw[payloadOffset:]))
	end := at + int(binary.LittleEndian.Uint32(raw[payloadLength:])) - 4 // it ends in its size when unpacked
	elf, err := io.ReadAll(lz4.NewReader(bytes.NewReader(raw[at:end])))
	if err != nil {
		return fmt.Errorf("unpack %s: %w", bzImage, err)
	}
	tmp := to + ".new"
	return errors.Join(os.WriteFile(tmp, elf, 0o444), os.Chtimes(tmp, from.ModTime(), from.ModTime()), os.Rename(tmp, to))
}
