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
	for _, f := range Run(t.Context(), append(Host(System{Data: t.TempDir()}), Production(System{})...)) {
		require.NotEmpty(t, f.Name)
		require.NotEmpty(t, f.Detail, f.Name)
		require.Contains(t, []Status{OK, Warn, Fail}, f.Status)
		require.False(t, names[f.Name], f.Name)
		names[f.Name] = true
		if f.Status != OK {
			require.NotEmpty(t, f.Hint, f.Name)
		}
	}
	for _, name := range []string{"root", "machine", "mkfs.erofs", "mke2fs", "tun", "namespaces", "memfd", "cgroups", "memory", "disk",
		"kvm", "userfaultfd", "loop", "nf_tables", "firewall", "ip_forward", "data directory", "production: swap", "production: open files"} {
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

func TestWhatAHostCanDoWithout(t *testing.T) { //nolint:paralleltest // changes PATH
	t.Setenv("PATH", t.TempDir())
	f := QEMU(t.Context())
	require.Equal(t, []any{"qemu", Warn}, []any{f.Name, f.Status})
	require.Contains(t, f.Hint, "qemu-system-x86")
}

func TestLimits(t *testing.T) {
	t.Parallel()
	f := Limits("gvisor", []Limit{{"cpu", true, "cgroup v1"}, {"pids", true, "cgroup v1"}})
	require.Equal(t, Finding{Name: "gvisor limits", Status: OK, Detail: "cpu in force (cgroup v1), pids in force (cgroup v1)"}, f)
	f = Limits("gvisor", []Limit{{"cpu", true, "cgroup v2"}, {"memory", false, "no controller"}})
	require.Equal(t, Warn, f.Status)
	require.Equal(t, "cpu in force (cgroup v2), memory not in force (no controller)", f.Detail)
	require.NotEmpty(t, f.Hint)
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
