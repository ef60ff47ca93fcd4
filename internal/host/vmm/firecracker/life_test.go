package firecracker_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/uids"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/firecrackertest"
)

func TestLife(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	vm, g := boot(t, d, cfg)
	require.NoError(t, vm.Pause(t.Context()))
	require.NoError(t, vm.Pause(t.Context()))
	require.Equal(t, "Paused", g.Ask(t, "state"))
	require.NoError(t, vm.Resume(t.Context()))
	require.Equal(t, "Running", g.Ask(t, "state"))
	f, err := os.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	defer f.Close()
	err = vm.SaveState(t.Context(), f)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "of one that runs: %v", err)
	groups, err := d.Groups(t.Context())
	require.NoError(t, err)
	found := false
	for _, l := range d.Limits() {
		found = found || l.InForce
	}
	has := false
	for _, group := range groups {
		has = has || group == vmm.Group{Name: "fc-sb1-" + uidOf(cfg), ID: "sb1", UID: cfg.UID}
	}
	require.Equal(t, found, has, "its cgroup, where there are any: %v", groups)
	require.NoError(t, vm.Kill(t.Context()))
	require.NoError(t, vm.Kill(t.Context()))
	require.True(t, vm.Exit().Requested)
	requireNothing(t, d, cfg)
	require.True(t, fault.Is(vm.Resume(t.Context()), fault.FailedPrecondition))
}

func uidOf(cfg vmm.Config) string { return strconv.Itoa(cfg.UID) }

// TestJail: the VMM can make no file and its agent is led nowhere.
func TestJail(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	vm, g := boot(t, d, cfg)
	for _, path := range []string{"/x", "/dev/x", "/run/x", "/kernel", "/firecracker.pid"} {
		require.Contains(t, g.Try(t, "make "+path), "permission denied", path)
	}
	root := filepath.Dir(vm.Handle().Socket)
	info, err := os.Stat(root)
	require.NoError(t, err)
	require.Zero(t, info.Sys().(*syscall.Stat_t).Uid)
	kernel, err := os.Stat(cfg.Kernel)
	require.NoError(t, err)
	linked, err := os.Stat(filepath.Join(root, "kernel"))
	require.NoError(t, err)
	require.True(t, os.SameFile(kernel, linked), "a kernel that all may read is linked")

	socket := vm.Handle().Socket
	require.NoError(t, os.Rename(socket, socket+"2"))
	require.NoError(t, os.Symlink(socket+"2", socket))
	require.Error(t, vm.Pause(t.Context()), "a link is not followed")
	require.NoError(t, os.Remove(socket))
	require.NoError(t, os.Rename(socket+"2", socket))
	require.NoError(t, vm.Pause(t.Context()))
}

func TestInputsThatOthersCanWriteAreRefused(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	require.NoError(t, os.Chmod(cfg.Kernel, 0o666))
	_, err := d.Boot(t.Context(), cfg)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	require.NoError(t, os.Chmod(cfg.Kernel, 0o444))
	require.NoError(t, os.Chmod(filepath.Dir(cfg.Kernel), 0o777))
	_, err = d.Boot(t.Context(), cfg)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	require.Contains(t, fault.HintOf(err), "chmod go-w")
	requireNothing(t, d, cfg)
}

func TestRestoreFromAFile(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	state, memory := template(t, d, "write 7 template")
	require.NoError(t, os.Truncate(memory, 2*memoryMB<<20), "it may be longer")
	one, g1 := restore(t, d, state, vmm.Memory{Path: memory})
	_, g2 := restore(t, d, state, vmm.Memory{Path: memory})
	require.Equal(t, "Paused", g1.Ask(t, "state"))
	g1.Ask(t, "write 7 one")
	require.Equal(t, "one", g1.Ask(t, "read 7"))
	require.Equal(t, "template", g2.Ask(t, "read 7"), "it is mapped privately")
	m, err := one.Mapping()
	require.NoError(t, err)
	require.Equal(t, int64(memoryMB)<<20, m.Bytes)
	_, err = one.MemoryFile()
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
}

func TestRestoreFromAPager(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	state, _ := template(t, d, "write 7 template")
	dir := t.TempDir()
	path := filepath.Join(dir, "pager.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chmod(path, 0o666))
	said := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, 64)
		n, _ := conn.Read(b)
		said <- string(b[:n])
	}()
	vm, g := restore(t, d, state, vmm.Memory{Pager: path})
	require.Contains(t, <-said, "67108864")
	require.Equal(t, "Paused", g.Ask(t, "state"))
	require.NoFileExists(t, filepath.Join(filepath.Dir(vm.Handle().Socket), "pager.sock"))
}

func TestRestoreThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	state, memory := template(t, d, "write 7 template")
	broken, err := os.CreateTemp(t.TempDir(), "state")
	require.NoError(t, err)
	defer broken.Close()
	_, err = broken.WriteString("no state")
	require.NoError(t, err)
	cfg := fakeConfig(t)
	cfg.Memory.Path = memory
	_, err = d.Restore(t.Context(), cfg, broken, nil)
	require.ErrorContains(t, err, "Load snapshot error")
	requireNothing(t, d, cfg)
	cfg.Drive = nil
	_, err = d.Restore(t.Context(), cfg, state, nil)
	require.ErrorContains(t, err, "no such file", "its disk is where it was")
	requireNothing(t, d, cfg)
}

func TestDirtyAccumulates(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	state, memory := template(t, d, "write 7 template")
	vm, g := restore(t, d, state, vmm.Memory{Path: memory})
	require.Empty(t, dirtyPages(t, vm))
	require.NoError(t, vm.Resume(t.Context()))
	g.Ask(t, "write 1 first")
	g.Ask(t, "write 2 second")
	saveState(t, vm)
	require.Equal(t, map[int]string{1: "first", 2: "second"}, dirtyPages(t, vm))

	require.NoError(t, vm.Resume(t.Context()))
	g.Ask(t, "write 2 again")
	g.Ask(t, "write 3 ")
	g.Ask(t, "fail write")
	require.NoError(t, vm.Pause(t.Context()))
	err := vm.SaveState(t.Context(), state)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.True(t, fault.Is(err, fault.ResourceExhausted), "%v", err)
	saveState(t, vm)
	want := map[int]string{1: "first", 2: "again", 3: ""}
	require.Equal(t, want, dirtyPages(t, vm), "a zeroed page is data too")

	g.Ask(t, "fail sync")
	require.Error(t, vm.SaveState(t.Context(), state))
	h := vm.Handle()
	vm.Detach()
	again, err := d.Adopt(t.Context(), h)
	require.NoError(t, err)
	killAtEnd(t, again)
	saveState(t, again)
	all := dirtyPages(t, again)
	require.Len(t, all, memoryMB<<20/4096, "after a save whose pages were lost, all is saved")
	require.Equal(t, "first", all[1])
	require.Equal(t, "template", all[7])
}

// A save that nobody saw the end of may have lost its pages.
func TestSaveWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	vm, g := boot(t, d, fakeConfig(t))
	g.Ask(t, "write 1 first")
	state := saveState(t, vm)
	require.NoError(t, vm.Resume(t.Context()))
	g.Ask(t, "write 2 second")
	g.Ask(t, "fail silently")
	require.NoError(t, vm.Pause(t.Context()))
	require.Error(t, vm.SaveState(t.Context(), state))
	h := vm.Handle()
	vm.Detach() // as if the agent had died meanwhile
	again, err := d.Adopt(t.Context(), h)
	require.NoError(t, err)
	killAtEnd(t, again)
	saveState(t, again)
	all := dirtyPages(t, again)
	require.Equal(t, "first", all[1])
	require.Equal(t, "second", all[2])
	require.NoError(t, again.Resume(t.Context()))
	g.Ask(t, "write 3 third")
	saveState(t, again)
	require.Equal(t, "third", dirtyPages(t, again)[3])
	_, err = os.Lstat(filepath.Join(filepath.Dir(h.Console), "jail", "full"))
	require.ErrorIs(t, err, os.ErrNotExist, "the next saves are small again")
}

// A VM that is ended while no agent watches leaves nothing, once that is seen to.
func TestClean(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	vm, _ := boot(t, d, cfg)
	require.NoError(t, d.Clean(t.Context(), t.TempDir()), "where nothing was")
	vm.Detach()
	require.NoError(t, uids.Kill(t.Context(), cfg.UID))
	for range 2 {
		require.NoError(t, d.Clean(t.Context(), cfg.Dir))
		requireNothing(t, d, cfg)
	}
	require.FileExists(t, cfg.Drive[0].Path)
}

func TestExitReasons(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	for _, c := range []struct{ say, end, reason string }{
		{"[    1.234567] reboot: Restarting system", "exit 0", "guest rebooted"},
		{"[    1.234567] Kernel panic - not syncing: oh \x1b[31mno", "exit 0", "guest panicked: oh [31mno"},
		{"bye", "exit 0", "guest shut down or rebooted"},
		{"[    1.2] reboot: Power off not available: System halted instead", "", "guest shut down"},
		{"[    1.2] reboot: Power down", "", "guest shut down"},
		{"x reboot: Power down", "exit 148", "firecracker: exit status 148, a system call that its seccomp filter refuses"},
		{"2026-11-24T17:16:41.76 [fc-sb1:main] it broke", "exit 1", "firecracker: exit status 1: it broke"},
		{"2026-11-24T18:49:51.88 [fc-sb1:fc_vcpu 0] Unexpected exit reason on vcpu run: Shutdown", "exit 1", "guest crashed: its CPU stopped (Shutdown)"},
	} {
		cfg := fakeConfig(t)
		vm, g := boot(t, d, cfg)
		g.Tell(t, "print "+c.say) // a guest that has halted does not answer
		if c.end != "" {
			g.Tell(t, c.end)
		}
		require.Equal(t, c.reason, awaitExit(t, vm).Reason)
		require.False(t, vm.Exit().Requested)
		requireNothing(t, d, cfg)
		kept, err := d.ReadConsole(cfg.Dir)
		require.NoError(t, err)
		require.Contains(t, string(kept), c.say)
	}
	vm, _ := boot(t, d, fakeConfig(t))
	require.NoError(t, unix.Kill(vm.Handle().PID, unix.SIGKILL))
	require.Equal(t, "killed by signal 9", awaitExit(t, vm).Reason)
}

// TestConsoleWaitsForNobody: without an agent the guest prints on, and the first of it is kept.
func TestConsoleWaitsForNobody(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	cfg := fakeConfig(t)
	vm, g := boot(t, d, cfg)
	h := vm.Handle()
	vm.Detach()
	require.True(t, fault.Is(vm.Pause(t.Context()), fault.FailedPrecondition))
	g.Ask(t, "print said to nobody")
	for range 40 {
		g.Ask(t, "print "+strings.Repeat("x", 60<<10))
	}
	again, err := d.Adopt(t.Context(), h)
	require.NoError(t, err)
	killAtEnd(t, again)
	require.Equal(t, h, again.Handle())
	require.NoError(t, again.Kill(t.Context()))
	kept, err := again.Console()
	require.NoError(t, err)
	require.LessOrEqual(t, len(kept), 1<<20)
	require.Contains(t, string(kept), "xxx")
}

func TestAdoptRefused(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	vm, _ := boot(t, d, fakeConfig(t))
	good := vm.Handle()
	for name, change := range map[string]func(*vmm.Handle){
		"another process":  func(h *vmm.Handle) { h.StartTime++ },
		"before a reboot":  func(h *vmm.Handle) { h.BootID = "another" },
		"another user's":   func(h *vmm.Handle) { h.UID++ },
		"no such process":  func(h *vmm.Handle) { h.PID = 1 << 30 },
		"no pid in handle": func(h *vmm.Handle) { h.PID = 0 },
		"another's socket": func(h *vmm.Handle) { h.Socket = "/run/docker.sock" },
	} {
		h := good
		change(&h)
		_, err := d.Adopt(t.Context(), h)
		require.True(t, fault.Is(err, fault.NotFound), "%s: %v", name, err)
	}
	require.NoError(t, vm.Pause(t.Context()))
}

// TestLeftovers: what a VM left that died when there was no agent is removed by who looks for it, and
// by the next start in its directory.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	d := fakeDriver(t)
	for _, adopt := range []bool{true, false} {
		cfg := fakeConfig(t)
		vm, _ := boot(t, d, cfg)
		h := vm.Handle()
		vm.Detach()
		require.NoError(t, unix.Kill(h.PID, unix.SIGKILL))
		_, err := unix.Wait4(h.PID, nil, 0, nil)
		require.NoError(t, err)
		require.DirExists(t, filepath.Join(cfg.Dir, "jail"))
		if adopt {
			_, err := d.Adopt(t.Context(), h)
			require.True(t, fault.Is(err, fault.NotFound), "%v", err)
		} else {
			again, _ := boot(t, d, cfg)
			require.NoError(t, again.Kill(t.Context()))
		}
		requireNothing(t, d, cfg)
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for version, ok := range map[string]bool{
		"1.15.0": false, "1.14.9": false, "0.99.99": false, "1.15.1": true, "1.16.0-dev": true, "2.0.0": true, "x": false,
	} {
		o := firecracker.Options{}
		o.Binary, o.Jailer = firecrackertest.InstallVersion(t, version)
		d, err := firecracker.New(t.Context(), o)
		if !ok {
			require.True(t, fault.Is(err, fault.FailedPrecondition), "%s: %v", version, err)
			continue
		}
		require.NoError(t, err, version)
		require.Equal(t, version, d.Identity().Version)
		require.Len(t, d.Identity().Build, 64)
	}
	o := firecracker.Options{}
	o.Binary, _ = firecrackertest.InstallVersion(t, "1.15.1")
	_, o.Jailer = firecrackertest.InstallVersion(t, "1.16.1")
	_, err := firecracker.New(t.Context(), o)
	require.ErrorContains(t, err, "1.16.1")
	o.Binary, o.Jailer = firecrackertest.Install(t)
	o.Flags = []string{"--enable-pci"}
	_, err = firecracker.New(t.Context(), o)
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
}

// TestReplaced: a binary that was exchanged under the driver is not started.
func TestReplaced(t *testing.T) {
	t.Parallel()
	o := firecracker.Options{}
	o.Binary, o.Jailer = firecrackertest.Install(t)
	d, err := firecracker.New(t.Context(), o)
	require.NoError(t, err)
	require.NoError(t, os.Remove(o.Jailer))
	require.NoError(t, os.WriteFile(o.Jailer, []byte("another"), 0o755))
	cfg := fakeConfig(t)
	_, err = d.Boot(t.Context(), cfg)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	requireNothing(t, d, cfg)
}

// TestStartThatFails says what the programs said.
func TestStartThatFails(t *testing.T) {
	t.Parallel()
	o := options()
	o.Binary, o.Jailer = firecrackertest.Install(t)
	o.Flags = []string{"--unknown", "flag"}
	d, err := firecracker.New(t.Context(), o)
	require.NoError(t, err)
	cfg := fakeConfig(t)
	_, err = d.Boot(t.Context(), cfg)
	require.ErrorContains(t, err, "--unknown")
	requireNothing(t, d, cfg)
}
