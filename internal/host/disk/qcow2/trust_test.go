package qcow2_test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/disktest"
)

const secret = "root:x:0:0:"

// refusedEverywhere requires that no operation uses the disk's image, whatever way it comes in.
func refusedEverywhere(t *testing.T, live disk.Live) {
	t.Helper()
	layer := disk.Layer{Path: live.Path, SizeBytes: live.SizeBytes}
	stack := live.Stack.With(layer)
	dir := t.TempDir()
	ops := map[string]func() error{
		"attach": func() error { _, err := driver.Attach(t.Context(), live); return err },
		"seal":   func() error { _, _, err := driver.Seal(t.Context(), live, 1, nil); return err },
		"grow":   func() error { _, err := driver.Grow(t.Context(), live, 2*live.SizeBytes); return err },
		"open":   func() error { _, err := driver.Open(t.Context(), stack, live.SizeBytes, dir, 1); return err },
		"merge": func() error {
			_, err := driver.Merge(t.Context(), live.Stack, stack.Layers, filepath.Join(dir, "m"))
			return err
		},
		"flatten": func() error { _, err := driver.Flatten(t.Context(), stack, filepath.Join(dir, "f")); return err },
	}
	for name, op := range ops {
		err := op()
		require.Truef(t, fault.Is(err, fault.FailedPrecondition), "%s: %v", name, err)
		require.NotEmpty(t, fault.HintOf(err), name)
		require.NotContains(t, err.Error(), secret)
	}
	require.Empty(t, filesIn(t, dir))
}

// patch overwrites part of an image, as an escaped VM could.
func patch(t *testing.T, path string, offset int64, b []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(b, offset)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// TestForeignHeaderIsRefused rewrites a live disk's header with each thing that would make a
// reader leave the image or the dialect.
func TestForeignHeaderIsRefused(t *testing.T) {
	t.Parallel()
	patches := map[string]func(t *testing.T, path string){
		"magic":          func(t *testing.T, path string) { patch(t, path, 0, be32(0)) },
		"version 2":      func(t *testing.T, path string) { patch(t, path, 4, be32(2)) },
		"cluster size":   func(t *testing.T, path string) { patch(t, path, 20, be32(12)) },
		"other size":     func(t *testing.T, path string) { patch(t, path, 24, be64(4*mb)) },
		"huge size":      func(t *testing.T, path string) { patch(t, path, 24, be64(1<<62)) },
		"negative size":  func(t *testing.T, path string) { patch(t, path, 24, be64(1<<63)) },
		"encryption":     func(t *testing.T, path string) { patch(t, path, 32, be32(2)) },
		"no L1 entries":  func(t *testing.T, path string) { patch(t, path, 36, be32(0)) },
		"huge L1":        func(t *testing.T, path string) { patch(t, path, 36, be32(1<<31)) },
		"L1 in header":   func(t *testing.T, path string) { patch(t, path, 40, be64(0)) },
		"L1 unaligned":   func(t *testing.T, path string) { patch(t, path, 40, be64(3<<16+8)) },
		"snapshots":      func(t *testing.T, path string) { patch(t, path, 60, be32(1)) },
		"marked dirty":   func(t *testing.T, path string) { patch(t, path, 72, be64(1)) },
		"marked corrupt": func(t *testing.T, path string) { patch(t, path, 72, be64(2)) },
		"data file bit":  func(t *testing.T, path string) { patch(t, path, 72, be64(4)) },
		"extended L2":    func(t *testing.T, path string) { patch(t, path, 72, be64(16)) },
		"bitmaps":        func(t *testing.T, path string) { patch(t, path, 88, be64(1)) },
		"refcount order": func(t *testing.T, path string) { patch(t, path, 96, be32(6)) },
		"empty file":     func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
		"backing file":   backingFile,
		"symbolic link": func(t *testing.T, path string) {
			replace(t, path, func() error { return os.Symlink("/etc/passwd", path) })
		},
		"FIFO":           func(t *testing.T, path string) { replace(t, path, func() error { return syscall.Mkfifo(path, 0o600) }) },
		"QEMU data file": dataFile,
		"QEMU backing":   qemuBacking,
	}
	for name, change := range patches {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			live := create(t, 8*mb)
			change(t, live.Path)
			refusedEverywhere(t, live)
		})
	}
}

func backingFile(t *testing.T, path string) {
	patch(t, path, 512, []byte("/etc/passwd"))
	patch(t, path, 8, append(be64(512), be32(11)...))
}

func replace(t *testing.T, path string, with func() error) {
	require.NoError(t, os.Remove(path))
	require.NoError(t, with())
}

// dataFile has QEMU itself make an image whose content is /etc/passwd, then proves that a
// program which believes the header would read it.
func dataFile(t *testing.T, path string) {
	data := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.WriteFile(data, make([]byte, 8*mb), 0o600))
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+data+",data_file_raw=on", path, "8M")
	require.NoError(t, os.Remove(data))
	require.NoError(t, os.Symlink("/etc/passwd", data))
	requireTrap(t, path)
}

func qemuBacking(t *testing.T, path string) {
	require.NoError(t, os.Remove(path))
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path, "8M")
	requireTrap(t, path)
}

func requireTrap(t *testing.T, path string) {
	out := filepath.Join(t.TempDir(), "out")
	qemuImg(t, "convert", "-O", "raw", path, out)
	got, err := os.ReadFile(out)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(got), secret), "the trap must be a real one")
}

func qemuImg(t *testing.T, args ...string) {
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestWildTablesStayInside points tables and data outside of everything: reading ends in a
// refusal or in zeros, and never in a panic or in another file.
func TestWildTablesStayInside(t *testing.T) {
	t.Parallel()
	const l1 = 3 << 16
	tables := map[string][]byte{
		"far L2":       be64(1<<55 | 1<<63),
		"unaligned L2": be64(l1 + 512),
		"L2 is header": be64(1 << 63),
		"L2 is L1":     be64(l1 | 1<<63),
	}
	for name, entry := range tables {
		live := create(t, 8*mb)
		patch(t, live.Path, l1, entry)
		requireTame(t, name, live)
	}
	for name, entry := range map[string][]byte{
		"compressed": be64(1<<62 | 512), "far data": be64(1<<55 | 1<<63), "unaligned data": be64(4<<16 + 512), "all bits": be64(1<<64 - 1),
	} {
		live := create(t, 8*mb)
		withVM(t, live, func(vm disktest.VM) { write(t, vm, noise(mb), 0) })
		raw, err := os.ReadFile(live.Path)
		require.NoError(t, err)
		l2 := int64(binary.BigEndian.Uint64(raw[l1:]) &^ (1 << 63))
		patch(t, live.Path, l2+8, entry)
		requireTame(t, name, live)
	}
}

// requireTame seals the disk and rewrites its layer both ways.
func requireTame(t *testing.T, name string, live disk.Live) {
	stack := seal(t, live)
	dir := t.TempDir()
	for _, err := range []error{
		func() error {
			_, err := driver.Merge(t.Context(), live.Stack, stack.Layers, filepath.Join(dir, "m"))
			return err
		}(),
		func() error { _, err := driver.Flatten(t.Context(), stack, filepath.Join(dir, "f")); return err }(),
	} {
		if err != nil {
			require.Truef(t, fault.Is(err, fault.FailedPrecondition), "%s: %v", name, err)
		}
	}
	if flat, err := os.ReadFile(filepath.Join(dir, "f")); err == nil {
		require.NotContains(t, string(flat), secret)
	}
}

// TestBaseMustBeTheRecordedOne: a base that was resized in place is not the one paused disks
// stand on.
func TestBaseMustBeTheRecordedOne(t *testing.T) {
	t.Parallel()
	live := create(t, 8*mb)
	require.NoError(t, os.Truncate(live.Stack.Base.Path, 2*mb))
	_, err := driver.Attach(t.Context(), live)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
}
