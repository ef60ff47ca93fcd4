package census

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(Main(m, Own(plantName))) }

// plantName is in the name of everything planted; short, for links hold 15 bytes.
var plantName = fmt.Sprintf("roostp%d", os.Getpid())

// plantUID is a uid of the range that no installation under test uses.
const plantUID = 999_990

// plant is a leak made on purpose. put makes it, says what its name must contain and how to
// take it back.
type plant struct {
	kind Kind
	put  func(t *testing.T) (what string, undo func())
}

// scope sees only what this test plants, whatever else runs on the machine.
func scope() Scope {
	s := Own(plantName)
	s.FirstUID, s.LastUID = plantUID, plantUID
	return s
}

// prove plants each and requires that it is named, and that nothing is once it is undone.
func prove(t *testing.T, s Scope, plants []plant) {
	t.Helper()
	for _, p := range plants {
		before, err := Take(s)
		require.NoError(t, err)
		what, undo := p.put(t)
		after, err := Take(s)
		require.NoError(t, err)
		requireLeak(t, Diff(before, after), p.kind, what)
		undo()
		left, err := Settle(s, before, Grace)
		require.NoError(t, err)
		require.Empty(t, left, "after undoing %s", p.kind)
	}
}

func requireLeak(t *testing.T, leaks []Leak, kind Kind, what string) {
	t.Helper()
	for _, l := range leaks {
		if l.Kind == kind && strings.Contains(l.What, what) {
			return
		}
	}
	t.Fatalf("no leak of kind %q names %q; named were: %v", kind, what, leaks)
}

func TestEachKindOfLeakIsNamed(t *testing.T) {
	needRoot(t)
	prove(t, scope(), []plant{
		{Process, sleeper(nil, "sleep", "600")},
		{Process, zombie},
		{UID, sleeper(&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: plantUID, Gid: plantUID}}, "sleep", "600")},
		{Namespace, namedNamespace},
		{Namespace, anonymousNamespace},
		{Loop, loop},
		{Mount, tmpfs},
		{Socket, socket},
		{File, file},
		{Cgroup, cgroup},
		{FD, descriptor},
		{Goroutine, goroutine},
	})
}

// Links, addresses, routes, tables and switches are planted in a namespace of this thread.
func TestEachKindOfNetworkLeakIsNamed(t *testing.T) {
	needRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		s := scope()
		s.Host, s.Self, s.Links = true, false, hostLink
		prove(t, s, []plant{
			{Link, link(plantName)},
			{Link, link("rab12h7")},
			{Address, address},
			{Route, route},
			{Table, table},
			{Sysctl, forwarding},
		})
	}()
	<-done
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make namespaces, mounts and loop devices")
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

func sleeper(attr *syscall.SysProcAttr, name string, args ...string) func(t *testing.T) (string, func()) {
	return func(t *testing.T) (string, func()) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.SysProcAttr = attr
		require.NoError(t, cmd.Start())
		return fmt.Sprintf("pid %d,", cmd.Process.Pid), func() {
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait() // killed
		}
	}
}

func zombie(t *testing.T) (string, func()) {
	t.Helper()
	cmd := exec.Command("true")
	require.NoError(t, cmd.Start())
	var info unix.Siginfo
	require.NoError(t, unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil))
	return "zombie", func() { require.NoError(t, cmd.Wait()) }
}

func namedNamespace(t *testing.T) (string, func()) {
	t.Helper()
	run(t, "ip", "netns", "add", plantName)
	return plantName, func() { run(t, "ip", "netns", "del", plantName) }
}

func anonymousNamespace(t *testing.T) (string, func()) {
	t.Helper()
	return sleeper(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}, "sleep", "600")(t)
}

func loop(t *testing.T) (string, func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), plantName)
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	dev := run(t, "losetup", "-f", "--show", path)
	return filepath.Base(dev) + " over " + path, func() { run(t, "losetup", "-d", dev) }
}

func tmpfs(t *testing.T) (string, func()) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), plantName+" with a space")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	return dir, func() { require.NoError(t, unix.Unmount(dir, 0)) }
}

func socket(t *testing.T) (string, func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), plantName+".sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	require.NoError(t, err)
	return path + " (listening)", func() { require.NoError(t, l.Close()) }
}

func file(t *testing.T) (string, func()) {
	t.Helper()
	f, err := os.CreateTemp("", plantName) //nolint:usetesting // a leak on purpose
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return f.Name(), func() { require.NoError(t, os.Remove(f.Name())) }
}

func cgroup(t *testing.T) (string, func()) {
	t.Helper()
	list, err := mounts()
	require.NoError(t, err)
	for _, m := range list {
		dir := filepath.Join(m.point, plantName)
		if strings.HasPrefix(m.kind, "cgroup") && os.Mkdir(dir, 0o700) == nil {
			return dir, func() { require.NoError(t, os.Remove(dir)) }
		}
	}
	t.Fatal("no cgroup hierarchy is mounted")
	return "", nil
}

func descriptor(t *testing.T) (string, func()) {
	t.Helper()
	f, err := os.Open("/dev/zero")
	require.NoError(t, err)
	return "/dev/zero", func() { require.NoError(t, f.Close()) }
}

func goroutine(t *testing.T) (string, func()) {
	t.Helper()
	started, stop := make(chan struct{}), make(chan struct{})
	go func() { close(started); <-stop }()
	<-started
	return "census.goroutine", func() { close(stop) }
}

func link(name string) func(t *testing.T) (string, func()) {
	return func(t *testing.T) (string, func()) {
		t.Helper()
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer0"}
		require.NoError(t, netlink.LinkAdd(l))
		return name, func() { require.NoError(t, netlink.LinkDel(l)) }
	}
}

func address(t *testing.T) (string, func()) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	a, err := netlink.ParseAddr("198.51.100.7/32")
	require.NoError(t, err)
	require.NoError(t, netlink.AddrAdd(lo, a))
	return "198.51.100.7/32 on lo", func() { require.NoError(t, netlink.AddrDel(lo, a)) }
}

func route(t *testing.T) (string, func()) {
	t.Helper()
	_, dst, err := net.ParseCIDR("198.51.100.0/24")
	require.NoError(t, err)
	r := &netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}
	require.NoError(t, netlink.RouteAdd(r))
	return "198.51.100.0/24 through no link", func() { require.NoError(t, netlink.RouteDel(r)) }
}

func table(t *testing.T) (string, func()) {
	t.Helper()
	conn, err := nftables.New()
	require.NoError(t, err)
	tab := conn.AddTable(&nftables.Table{Name: plantName, Family: nftables.TableFamilyINet})
	require.NoError(t, conn.Flush())
	return plantName, func() {
		conn.DelTable(tab)
		require.NoError(t, conn.Flush())
	}
}

func forwarding(t *testing.T) (string, func()) {
	t.Helper()
	const path = "/proc/sys/net/ipv4/ip_forward" // of the namespace of the thread that opens it
	set := func(v string) { require.NoError(t, os.WriteFile(path, []byte(v), 0o600)) }
	old := readLine(path)
	flipped := map[string]string{"0": "1", "1": "0"}[old]
	set(flipped)
	return "ip_forward = " + flipped, func() { set(old) }
}
