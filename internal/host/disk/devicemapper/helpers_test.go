package devicemapper_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper"
	"github.com/roosthq/roost/internal/host/disk/disktest"
)

const (
	mb = 1 << 20
	gb = 1 << 30
)

// newDriver is of an installation of the test's own.
func newDriver(t testing.TB, id string) *devicemapper.Driver {
	d, err := devicemapper.New(devicemapper.Options{Installation: id})
	if fault.Is(err, fault.FailedPrecondition) {
		t.Skip("needs device-mapper: run it in the lane, make vmtest PKG=./internal/host/disk/devicemapper")
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// census requires that an installation has nothing on the host.
func census(t testing.TB, d *devicemapper.Driver) {
	t.Helper()
	require.Empty(t, mapped(t, d))
}

func mapped(t testing.TB, d *devicemapper.Driver) []disk.Mapped {
	list, err := d.Mapped(t.Context())
	require.NoError(t, err)
	return list
}

// newBase makes a base of that size, with noise in its first 4 MiB and its last block.
func newBase(t testing.TB, size int64) disk.Base {
	base := disk.Base{Path: filepath.Join(t.TempDir(), "base.raw"), SizeBytes: size}
	require.NoError(t, os.WriteFile(base.Path, noise(int(min(size, 4*mb))), 0o400))
	require.NoError(t, os.Truncate(base.Path, size))
	return base
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // Never fails.
	return b
}

func create(t testing.TB, d *devicemapper.Driver, size int64) disk.Live {
	live, err := d.Create(t.Context(), newBase(t, 4*mb), size, t.TempDir(), 0)
	require.NoError(t, err)
	return live
}

func attach(t testing.TB, d *devicemapper.Driver, live disk.Live) disktest.VM {
	att, err := d.Attach(t.Context(), live)
	require.NoError(t, err)
	return disktest.OpenDevice(t, att)
}

func stop(t testing.TB, d *devicemapper.Driver, vm disktest.VM, live disk.Live) {
	require.NoError(t, vm.Close())
	require.NoError(t, d.Detach(t.Context(), live))
}

func seal(t testing.TB, d *devicemapper.Driver, live disk.Live) disk.Stack {
	layer, _, err := d.Seal(t.Context(), live, 0, nil)
	require.NoError(t, err)
	return live.Stack.With(layer)
}

func write(t testing.TB, vm disktest.VM, data []byte, offset int64) {
	t.Helper()
	_, err := vm.WriteAt(data, offset)
	require.NoError(t, err)
}

func read(t testing.TB, vm disktest.VM, offset int64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, err := vm.ReadAt(b, offset)
	require.NoError(t, err)
	return b
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

func kinds(list []disk.Mapped) (devices, loops int) {
	for _, m := range list {
		if strings.HasPrefix(m.Kind, "loop") {
			loops++
		} else {
			devices++
		}
	}
	return devices, loops
}

func paths(list []disk.Mapped) []string {
	var all []string
	for _, m := range list {
		all = append(all, m.Path)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
