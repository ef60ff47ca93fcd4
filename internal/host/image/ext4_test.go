package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: run deploy/setup", tool)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc", "hostname"), []byte("roost\n"), 0o600))
	require.NoError(t, os.Link(filepath.Join(root, "etc", "hostname"), filepath.Join(root, "etc", "again")))
	require.NoError(t, os.Chown(filepath.Join(root, "etc", "hostname"), 1000, 1000))
	disk := filepath.Join(dir, "disk.ext4")
	require.NoError(t, makeDisk(t.Context(), Recipe{Name: "small", SlackMB: 16}.form(), root, disk))
	return disk
}

func TestDiskHoldsTheTreeAndIsSparse(t *testing.T) {
	t.Parallel()
	needTools(t, "mke2fs", "debugfs")
	disk := smallDisk(t)
	require.Equal(t, "roost\n", strings.TrimPrefix(runTool(t, "debugfs", "-R", "cat /etc/again", disk), debugfsBanner(t)))
	require.Contains(t, runTool(t, "debugfs", "-R", "stat /etc/hostname", disk), "User:  1000")
	head := runTool(t, "dumpe2fs", "-h", disk)
	require.Contains(t, head, "noinit_itable")
	require.Regexp(t, `Total journal size: +8M`, head)
	st, err := os.Stat(disk)
	require.NoError(t, err)
	used, err := allocated(disk)
	require.NoError(t, err)
	require.Less(t, used, st.Size()/2, "%d of %d allocated", used, st.Size())
}

func debugfsBanner(t *testing.T) string {
	t.Helper()
	return runTool(t, "debugfs", "-V")[:len("debugfs 1.47.0 (5-Feb-2023)\n")]
}

func TestEqualTreesGiveEqualIdentifiers(t *testing.T) {
	t.Parallel()
	needTools(t, "mke2fs")
	field := func(disk, name string) string {
		for line := range strings.Lines(runTool(t, "dumpe2fs", "-h", disk)) {
			if strings.HasPrefix(line, name) {
				return line
			}
		}
		return ""
	}
	a, b := smallDisk(t), smallDisk(t)
	for _, name := range []string{"Filesystem UUID", "Directory Hash Seed", "Filesystem created"} {
		require.NotEmpty(t, field(a, name))
		require.Equal(t, field(a, name), field(b, name))
	}
}

func TestSmallDiskGrowsTo100GB(t *testing.T) {
	t.Parallel()
	needTools(t, "mke2fs", "resize2fs")
	disk := smallDisk(t)
	require.NoError(t, os.Truncate(disk, 100<<30))
	runTool(t, "resize2fs", disk)
	runTool(t, "e2fsck", "-fn", disk)
}

func TestContentCountsHardLinksOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty, err := measure(dir)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), make([]byte, 10_000), 0o600))
	require.NoError(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
	require.NoError(t, os.Symlink("a", filepath.Join(dir, "c")))
	got, err := measure(dir)
	require.NoError(t, err)
	require.EqualValues(t, 3*blockBytes, got.bytes-empty.bytes)
	require.EqualValues(t, 2, got.files-empty.files)
}
