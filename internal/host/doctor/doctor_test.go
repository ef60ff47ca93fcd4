package doctor

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRunKeepsTheOrder(t *testing.T) {
	t.Parallel()
	check := func(name string) Check { return func(context.Context) Finding { return ok(name, "") } }
	found := Run(t.Context(), []Check{check("a"), check("b")})
	require.Equal(t, []Finding{{Name: "a", Status: OK}, {Name: "b", Status: OK}}, found)
}

// What is not ok says how to mend it; no two checks have a name.
func TestFindingsOfThisHost(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, f := range Run(t.Context(), Host(t.TempDir())) {
		require.NotEmpty(t, f.Name)
		require.NotEmpty(t, f.Detail, f.Name)
		require.Contains(t, []Status{OK, Warn, Fail}, f.Status)
		require.False(t, names[f.Name], f.Name)
		names[f.Name] = true
		if f.Status != OK {
			require.NotEmpty(t, f.Hint, f.Name)
		}
	}
	for _, name := range []string{"root", "machine", "qemu-system-x86_64", "mke2fs", "tun", "namespaces", "memfd", "cgroups", "memory", "disk"} {
		require.True(t, names[name], name)
	}
}

func TestTool(t *testing.T) { //nolint:paralleltest // changes PATH
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	check := Tool("qemu-system-x86_64", "qemu-system-x86")
	require.Equal(t, Finding{
		Name: "qemu-system-x86_64", Status: Fail, Detail: "not found in PATH", Hint: "apt-get install qemu-system-x86",
	}, check(t.Context()))
	path := filepath.Join(dir, "qemu-system-x86_64")
	require.NoError(t, os.WriteFile(path, nil, 0o755))
	require.Equal(t, Finding{Name: "qemu-system-x86_64", Status: OK, Detail: path}, check(t.Context()))
}

func TestSpaceIsThatOfTheNearestFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	free, total, err := DiskSpace(dir)
	require.NoError(t, err)
	require.Positive(t, total)
	require.LessOrEqual(t, free, total)
	_, below, err := DiskSpace(filepath.Join(dir, "not", "made", "yet"))
	require.NoError(t, err)
	require.Equal(t, total, below)
	f := Space(filepath.Join(dir, "none"))
	require.Equal(t, "disk", f.Name)
	require.Contains(t, f.Detail, "GiB free under")
}
