package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"net/http"

	"github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/runtime"
)

const (
	testToken    = "the-first-token"
	guestAddress = "10.171.0.2"
	hostAddress  = "10.171.0.1"
	// limit is how long anything may take; no test waits for a time.
	limit = time.Minute
	// firstUID: none of an installation's.
	firstUID = 310_000_000
)

// Made once per run, removed by TestMain.
var (
	world   string
	tree    string
	guest   string
	nextUID atomic.Int64
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if world, err = os.MkdirTemp("/tmp", "gv-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(world)
	if err := makeWorld(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare tests:", err)
		return 1
	}
	code := m.Run()
	if err := RemoveCgroups(cgroupParent()); err != nil {
		fmt.Fprintln(os.Stderr, "left behind:", err)
		return 1
	}
	return code
}

func makeWorld() error {
	if os.Geteuid() != 0 {
		return errors.New("these tests run sandboxes: run them as root")
	}
	_, file, _, _ := goruntime.Caller(0)
	repo := filepath.Join(filepath.Dir(file), "..", "..", "..", "..")
	if os.Getenv("ROOST_RUNSC") == "" {
		if err := os.Setenv("ROOST_RUNSC", filepath.Join(repo, "bin", "runsc")); err != nil {
			return err
		}
	}
	if _, err := os.Stat(os.Getenv("ROOST_RUNSC")); err != nil {
		return fmt.Errorf("no runsc: make runsc builds it (%w)", err)
	}
	guest, tree = filepath.Join(world, "guest", "roost-guest"), filepath.Join(world, "tree.erofs")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "./cmd/roost-guest")
	build.Dir, build.Env = repo, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build roost-guest: %w: %s", err, out)
	}
	return makeTree(filepath.Join(world, "root"))
}

// makeTree makes a small file tree: busybox and two users.
func makeTree(root string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w (package busybox-static)", err)
	}
	for _, d := range []string{"bin", "etc", "root", "tmp", "proc", "sys", "dev", "run", "home/user"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	script := fmt.Sprintf(`cp %s %[2]s/bin/busybox && for t in $(%[1]s --list); do [ $t = busybox ] || ln -s busybox %[2]s/bin/$t; done
printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n' >%[2]s/etc/passwd
printf 'root:x:0:\nuser:x:1000:\n' >%[2]s/etc/group
mkfs.erofs -Enoinline_data,force-inode-extended -U 5f9d2d5c-2e9a-4f3c-9a3e-0d6a5e0f7d11 %[3]s %[2]s`, busybox, root, tree)
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make file tree: %w: %s", err, out)
	}
	return nil
}

// shared is the runtime of most tests: one probe.
var shared = sync.OnceValues(func() (*Runtime, error) {
	return New(context.Background(), options(filepath.Join(world, "builds")))
})

func options(builds string) Options {
	return Options{
		Builds: builds, CgroupParent: cgroupParent(),
		ProbeUID: newUID(), ProbeGuest: guest, Logger: slog.New(slog.DiscardHandler),
	}
}

func cgroupParent() string { return "roost-test" + strconv.Itoa(os.Getpid()) }

func newUID() int { return firstUID + os.Getpid()%100_000*1000 + int(nextUID.Add(1)) }

// box is a sandbox under test.
type box struct {
	t     *testing.T
	rt    *Runtime
	spec  runtime.Spec
	slot  *slot
	in    *instance
	guest *guestclient.Client
	token string
	gen   uint64
}

func newBox(t *testing.T) *box {
	t.Helper()
	rt, err := shared()
	require.NoError(t, err)
	return newBoxOf(t, rt)
}

func newBoxOf(t *testing.T, rt *Runtime) *box {
	t.Helper()
	dir, err := os.MkdirTemp(world, "b") //nolint:usetesting // a socket's path must be short
	require.NoError(t, err)
	uid := newUID()
	b := &box{t: t, rt: rt, slot: newSlot(t), token: testToken}
	b.spec = runtime.Spec{
		ID: "box" + strconv.Itoa(uid), UID: uid,
		Resources: runtime.Resources{VCPUs: 1, MemoryMB: 256, DiskSizeMB: 512},
		Template:  runtime.Template{Digest: "test", Tree: tree},
		Guest:     runtime.Guest{Path: guest, Token: testToken, DefaultUser: "root"},
		RunDir:    filepath.Join(dir, "run"), DiskDir: filepath.Join(dir, "disk"),
		Port: runtime.Port{Namespace: b.slot.path},
	}
	for _, d := range []string{b.spec.RunDir, b.spec.DiskDir} {
		require.NoError(t, os.Mkdir(d, 0o700))
	}
	t.Cleanup(b.end)
	return b
}

// end discards the sandbox and looks for what is left of it.
func (b *box) end() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if b.guest != nil {
		b.guest.Close()
	}
	if b.in != nil {
		b.in.Detach()
	}
	if b.t.Failed() {
		text, _ := b.rt.ConsoleOf(b.spec)
		b.t.Logf("console: %s", text)
	}
	require.NoError(b.t, b.rt.Discard(ctx, b.spec))
	b.nothingLeft()
}

func (b *box) nothingLeft() {
	b.t.Helper()
	left := 0
	require.NoError(b.t, eachProcess(func(pid int) {
		if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(raw, []byte(") Z ")) && (owner(pid) == b.spec.UID || carries(pid, []byte(rootFlag(b.spec.RunDir)))) {
			left++
		}
	}))
	require.Zero(b.t, left, "processes")
	dirs, err := b.rt.cgroups.leaves(leafOf(b.spec))
	require.NoError(b.t, err)
	require.Empty(b.t, dirs, "cgroups")
	for _, name := range []string{stateDir, bundleDir, consoleFIFO, pidFile} {
		require.NoFileExists(b.t, filepath.Join(b.spec.RunDir, name))
	}
	require.NoFileExists(b.t, liveDir(b.spec))
}

func (b *box) ctx() context.Context {
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	b.t.Cleanup(cancel)
	return ctx
}

// untilExit ends with the sandbox too: a dead one says no goodbye.
func (b *box) untilExit() context.Context {
	ctx, cancel := context.WithCancel(b.ctx())
	b.t.Cleanup(cancel)
	go func(in *instance) {
		select {
		case <-in.Exited():
			cancel()
		case <-ctx.Done():
		}
	}(b.in)
	return ctx
}

func (b *box) boot(opts runtime.BootOptions) {
	b.t.Helper()
	in, err := b.rt.Boot(b.ctx(), b.spec, opts)
	require.NoError(b.t, err)
	b.in = in.(*instance)
	b.meet()
	b.handshake()
}

// meet waits until the guest answers.
func (b *box) meet() {
	b.t.Helper()
	b.guest = guestclient.New(b.slot.dial, b.token)
	require.NoError(b.t, b.guest.WaitReady(b.ctx()))
}

func (b *box) handshake() {
	b.t.Helper()
	b.gen++
	b.token = fmt.Sprintf("token-%d-of-32-characters-or-more-----", b.gen)
	_, err := b.guest.Handshake(b.ctx(), guestclient.Identity{
		SandboxID: b.spec.ID, Generation: b.gen, Hostname: "roost", MachineID: strings.Repeat("0f", 16),
		AccessToken: "access", ControlToken: b.token, DefaultUser: "root",
	})
	require.NoError(b.t, err)
	require.NoError(b.t, b.guest.Thaw(b.ctx(), b.gen))
}

// capture freezes the sandbox and saves it.
func (b *box) capture(opts runtime.CaptureOptions) (runtime.Capture, runtime.CaptureStats) {
	b.t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(b.spec.RunDir), "c")
	require.NoError(b.t, err)
	b.freeze()
	rec, stats, err := b.in.Capture(b.ctx(), dir, opts)
	require.NoError(b.t, err)
	return runtime.Capture{Dir: dir, Record: rec}, stats
}

func (b *box) freeze() {
	b.t.Helper()
	require.NoError(b.t, b.guest.Freeze(b.ctx(), 10*time.Second))
	b.guest.CloseIdle()
	require.NoError(b.t, b.in.Freeze(b.ctx()))
}

func (b *box) thaw() {
	b.t.Helper()
	require.NoError(b.t, b.in.Thaw(b.ctx()))
	require.NoError(b.t, b.guest.Thaw(b.ctx(), b.gen))
}

// restored is another box, started from a capture of b.
func (b *box) restored(c runtime.Capture) *box {
	b.t.Helper()
	n := newBoxOf(b.t, b.rt)
	n.spec.Template = b.spec.Template
	n.token, n.gen = b.token, b.gen
	n.restore(c)
	return n
}

func (b *box) restore(c runtime.Capture) {
	b.t.Helper()
	in, err := b.rt.Restore(b.ctx(), b.spec, c)
	require.NoError(b.t, err)
	b.in = in.(*instance)
	require.NoError(b.t, b.in.Thaw(b.ctx()))
	b.meet()
	b.handshake()
}

// sh runs a shell line as root and returns its output.
func (b *box) sh(line string) (string, error) {
	b.t.Helper()
	client := processconnect.NewProcessClient(&http.Client{Transport: b.guest.Transport()}, "http://guest")
	req := connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", line}}})
	req.Header().Set("X-Access-Token", "access")
	stream, err := client.Start(b.untilExit(), req)
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out strings.Builder
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Data:
			out.Write(e.Data.GetStdout())
			out.Write(e.Data.GetStderr())
		case *process.ProcessEvent_End:
			if e.End.GetExitCode() != 0 || !e.End.GetExited() {
				return out.String(), fmt.Errorf("%s: %s: %s", line, e.End.GetStatus(), out.String())
			}
			return strings.TrimSpace(out.String()), nil
		}
	}
	return out.String(), errors.Join(errors.New("the stream ended"), stream.Err())
}

func (b *box) run(line string) string {
	b.t.Helper()
	out, err := b.sh(line)
	require.NoError(b.t, err)
	return out
}

// exit waits for the end of the sandbox.
func (b *box) exit() runtime.Exit {
	b.t.Helper()
	select {
	case <-b.in.Exited():
	case <-time.After(limit):
		require.Fail(b.t, "the sandbox does not end")
	}
	return b.in.Exit()
}

// slot is a network namespace with eth0 for a sandbox, and the host's end of it.
type slot struct {
	router, far netns.NsHandle
	path        string
}

func newSlot(t *testing.T) *slot {
	t.Helper()
	s := &slot{router: netns.None(), far: netns.None()}
	require.NoError(t, inThread(s.make))
	t.Cleanup(func() { _ = errors.Join(s.router.Close(), s.far.Close()) })
	s.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.far))
	return s
}

// inThread runs f on a thread that ends with it.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func (s *slot) make() (err error) {
	if s.far, err = netns.New(); err != nil {
		return err
	}
	if s.router, err = netns.New(); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "veth0"
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.far))}
	if err := errors.Join(netlink.LinkAdd(link), up("veth0", hostAddress+"/30")); err != nil {
		return err
	}
	if err := netns.Set(s.far); err != nil {
		return err
	}
	return errors.Join(up("eth0", guestAddress+"/30"), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(hostAddress)}))
}

func up(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}

func (s *slot) dial(ctx context.Context, port int) (conn net.Conn, err error) {
	err = inThread(func() error {
		if err := netns.Set(s.router); err != nil {
			return err
		}
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(guestAddress, strconv.Itoa(port)))
		return err
	})
	return conn, err
}
