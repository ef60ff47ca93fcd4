package qcow2_test

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/disktest"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
)

const (
	mb = 1 << 20
	gb = 1 << 30
)

var driver = qcow2.New()

// newBase makes a base of 4 MiB, all data.
func newBase(t testing.TB) disk.Base {
	base := disk.Base{Path: filepath.Join(t.TempDir(), "base.raw"), SizeBytes: 4 * mb}
	require.NoError(t, os.WriteFile(base.Path, noise(4*mb), 0o400))
	return base
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // Never fails.
	return b
}

func create(t testing.TB, size int64) disk.Live {
	live, err := driver.Create(t.Context(), newBase(t), size, t.TempDir(), 0)
	require.NoError(t, err)
	return live
}

// seal seals a disk that no VM uses.
func seal(t testing.TB, live disk.Live) disk.Stack {
	layer, _, err := driver.Seal(t.Context(), live, 0, nil)
	require.NoError(t, err)
	return live.Stack.With(layer)
}

// withVM lets a VM use the disk for the time of do.
func withVM(t testing.TB, live disk.Live, do func(disktest.VM)) {
	att, err := driver.Attach(t.Context(), live)
	require.NoError(t, err)
	vm := disktest.OpenFiles(t, att)
	do(vm)
	require.NoError(t, vm.Close())
}

func write(t testing.TB, vm disktest.VM, data []byte, offset int64) {
	_, err := vm.WriteAt(data, offset)
	require.NoError(t, err)
}

func read(t testing.TB, vm disktest.VM, offset int64, n int) []byte {
	b := make([]byte, n)
	_, err := vm.ReadAt(b, offset)
	require.NoError(t, err)
	return b
}

// requireSound has QEMU's own checker look at an image.
func requireSound(t testing.TB, path string) {
	out, err := exec.CommandContext(t.Context(), "qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func filesIn(t testing.TB, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
