package gvisor

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

func TestBundle(t *testing.T) {
	t.Parallel()
	r := &Runtime{builds: &builds{dir: "/data/builds"}, cgroups: cgroups{parent: "roost-x", version: 1, limits: []Limit{
		{Name: "cpu", InForce: true}, {Name: "memory", InForce: true}, {Name: "pids", Why: "no such controller"},
	}}}
	spec := runtime.Spec{
		ID: "abc", UID: 300_007, DiskDir: "/d/disk", DiskIndex: 4, RunDir: "/d/run",
		Port:  runtime.Port{Namespace: "/run/netns/x"},
		Guest: runtime.Guest{Token: "secret", Hostname: "roost", DNS: "10.171.0.1", DefaultUser: "user"},
	}
	rec := instanceRecord{
		Live: liveDir(spec), Leaf: leafOf(spec), Guest: "77", Tree: "/images/tree.erofs", VCPUs: 2, MemoryMB: 512, DiskMB: 5120,
	}
	dir := t.TempDir()
	require.NoError(t, r.bundleOf(spec, rec).write(dir))
	info, err := os.Stat(filepath.Join(dir, "config.json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "it holds a token")
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
	require.NoError(t, err)
	var s specs.Spec
	require.NoError(t, json.Unmarshal(raw, &s))
	require.Equal(t, "/d/disk/live-4", s.Root.Path)
	require.Equal(t, map[string]string{
		rootSource: "/images/tree.erofs", rootType: "erofs", rootOverlay: "self", rootOptions: "size=5368709120",
	}, s.Annotations)
	require.Equal(t, []specs.LinuxIDMapping{{HostID: 300_007, Size: 1}}, s.Linux.UIDMappings)
	require.Equal(t, "/roost-x/abc-300007", s.Linux.CgroupsPath)
	require.EqualValues(t, 200_000, *s.Linux.Resources.CPU.Quota)
	require.EqualValues(t, (512+overheadMB)<<20, *s.Linux.Resources.Memory.Limit)
	require.Nil(t, s.Linux.Resources.Pids, "not in force")
	require.Contains(t, s.Process.Env, "ROOST_CONTROL_TOKEN=secret")
	require.NotContains(t, s.Process.Args, "secret")
	require.Equal(t, []string{
		guestMount + "/roost-guest", "--no-init", "--root", "/", "--cgroup-root", "/sys/fs/cgroup",
		"--default-user=user", "--hostname=roost", "--dns=10.171.0.1",
	}, s.Process.Args)
	require.Contains(t, s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/x"})
	last := s.Mounts[len(s.Mounts)-1]
	require.Equal(t, "/data/builds/guest-77", last.Source)
	require.Contains(t, last.Options, "ro")
}

func TestNoCgroups(t *testing.T) {
	t.Parallel()
	c := cgroups{parent: "roost-x", version: 1}.none("not here")
	require.False(t, c.inForce("memory"))
	require.Len(t, c.limits, len(controllers))
	_, counted := c.memoryUsed("abc-1")
	require.False(t, counted)
	require.Zero(t, c.oomKills("abc-1"))
	require.Equal(t, &specs.LinuxResources{}, c.resources(1, 512))
	mine, err := uidMemory(os.Getuid())
	require.NoError(t, err)
	require.Positive(t, mine)
}

// TestRemoveCgroups: what a dead agent left goes, what is in use stays.
func TestRemoveCgroups(t *testing.T) {
	t.Parallel()
	c := findCgroups(cgroupParent() + "r")
	if c.version == 0 {
		t.Skip("no cgroups on this host")
	}
	leaf := filepath.Join(c.dir("memory"), "dead-1")
	require.NoError(t, os.MkdirAll(leaf, 0o755))
	require.NoError(t, RemoveCgroups(c.parent))
	require.NoDirExists(t, c.dir("memory"))
	require.NoError(t, RemoveCgroups(c.parent), "twice")
}

// TestConsoleSurvivesItsFiles: text that cannot be kept is lost, and who prints goes on.
func TestConsoleSurvivesItsFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	require.NoError(t, os.Mkdir(dir, 0o700))
	c, theirs, err := newConsole(dir)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir))
	for range 300 {
		_, err := theirs.Write(make([]byte, 8192))
		require.NoError(t, err)
	}
	require.NoError(t, theirs.Close())
	<-c.done
	c.close()
	kept, err := readConsole(dir)
	require.NoError(t, err)
	require.Empty(t, kept)
	require.Len(t, c.log.recent(), tailSize)
}

func TestComplaints(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(path, []byte(`{"msg":"one","level":"error","time":"x"}{"msg":"two\u001b[1m","level":"error"} rest`), 0o600))
	require.Equal(t, "one; two[1m", complaints(path))
	require.Empty(t, complaints(path+"-none"))
}

// A full disk is told wherever runsc says so, and a long text keeps its end.
func TestFullDiskIsToldInALongText(t *testing.T) {
	t.Parallel()
	long := "checkpoint failed: error serializing object " + strings.Repeat("(*wire.String)(0x6da45074a60), ", 100)
	for _, said := range [][]string{
		{long + ": write pages: no space left on device: goroutine 1 [running]"}, {"the log is cut", long + "no space left on device"},
	} {
		err := failure("checkpoint", errors.New("exit status 128"), said...)
		require.Equal(t, fault.ResourceExhausted, fault.KindOf(err))
		require.ErrorIs(t, err, unix.ENOSPC)
		require.Less(t, len(err.Error()), 800)
		require.Contains(t, err.Error(), "no space left on device")
	}
	require.Equal(t, fault.Internal, fault.KindOf(failure("checkpoint", errors.New("exit status 128"), "", long)))
}
