package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/roosthq/roost/api/gen/process/processconnect"
	"github.com/roosthq/roost/bench/harness"
)

// bareUID is the first uid of bare sandboxes: far from any installation's block.
const bareUID = 1_900_000_000

// bareRunsc restores the template's checkpoint as a script would that knows runsc and nothing of
// Roost: `runsc restore` with the bundle and the flags of a Roost sandbox, then the same handshake
// and a first command by the guest's own API. The namespaces are made before the clock starts.
type bareRunsc struct {
	dir, runsc string
	flags      []string
	config     []byte // Roost's bundle
	image      string
	token      string
	router     netns.NsHandle
	// console is a pipe that nobody needs to read: a restored guest prints nothing.
	console, unread *os.File
	n               int
	took            phases
}

// newBareRunsc takes bundle, flags and checkpoint from a sandbox that Roost has just restored.
func (s *server) newBareRunsc(ctx context.Context) (_ *bareRunsc, err error) {
	id, err := s.create(ctx, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.delete(ctx, id)) }()
	b := &bareRunsc{router: netns.None()}
	if b.dir, err = os.MkdirTemp("", "roost-bare-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.unread, b.console, err = os.Pipe(); err != nil {
		return nil, err
	}
	if b.config, err = os.ReadFile(filepath.Join(s.data, "sandboxes", id, "run", "bundle", "config.json")); err != nil {
		return nil, err
	}
	if err := b.copyFlags(s, id); err != nil {
		return nil, err
	}
	if err := b.findCheckpoint(s, id); err != nil {
		return nil, err
	}
	return b, onThread(func() (err error) {
		b.router, err = netns.New()
		return err
	})
}

// copyFlags takes runsc and its flags from a sandbox's sentry, those aside that name files.
func (b *bareRunsc) copyFlags(s *server, id string) error {
	j, err := s.journal(id)
	if err != nil {
		return err
	}
	b.runsc = filepath.Join(s.data, "builds", "runsc-"+j.Instance.Identity.Build, "runsc")
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", j.Instance.PID))
	if err != nil {
		return err
	}
	for _, arg := range strings.Split(string(raw), "\x00")[1:] {
		name, _, _ := strings.Cut(arg, "=")
		switch {
		case arg == "boot":
			return nil
		case name == "--root", name == "--log", name == "--panic-log", strings.HasSuffix(name, "-fd"):
		default:
			b.flags = append(b.flags, arg)
		}
	}
	return fmt.Errorf("process %d is no sentry", j.Instance.PID)
}

// findCheckpoint finds what the sandbox was restored from, and the token in it.
func (b *bareRunsc) findCheckpoint(s *server, id string) error {
	j, err := s.journal(id)
	if err != nil {
		return err
	}
	manifests, err := filepath.Glob(filepath.Join(s.data, "images", "warm", "*", "warm.json"))
	if err != nil {
		return err
	}
	for _, path := range manifests {
		var warm struct {
			Token  string      `json:"control_token"`
			Record gvisorStart `json:"record"`
		}
		raw, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(raw, &warm) != nil || warm.Record != j.Instance.gvisorStart {
			continue // another's
		}
		b.token, b.image = warm.Token, filepath.Dir(path)
		return nil
	}
	return fmt.Errorf("sandbox %s: its checkpoint is not in %s", id, filepath.Join(s.data, "images", "warm"))
}

func (b *bareRunsc) close() {
	if b.router.IsOpen() {
		_ = b.router.Close()
	}
	for _, f := range []*os.File{b.console, b.unread} {
		if f != nil {
			_ = f.Close()
		}
	}
	_ = os.RemoveAll(b.dir)
	for _, pattern := range []string{"/sys/fs/cgroup/" + b.cgroups(), "/sys/fs/cgroup/*/" + b.cgroups()} {
		left, _ := filepath.Glob(pattern)
		for _, dir := range left {
			_ = os.Remove(dir)
		}
	}
}

// cgroups is the folder of the bare sandboxes' cgroups.
func (b *bareRunsc) cgroups() string { return "roost-bench-" + strconv.Itoa(os.Getpid()) }

// sample is one restore, up to the end of the first command.
func (b *bareRunsc) sample(ctx context.Context) (seconds float64, err error) {
	b.n++
	dir := filepath.Join(b.dir, strconv.Itoa(b.n))
	if err := os.MkdirAll(filepath.Join(dir, "root"), 0o700); err != nil {
		return 0, err
	}
	far, err := b.makeFar()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.end(ctx, dir, far)) }()
	client := clientIn(b.router)
	defer client.CloseIdleConnections()
	steps := []struct {
		name string
		run  func() error
	}{
		{"bundle", func() error { return b.writeBundle(dir, far) }},
		{"runsc restore", func() error { return b.restore(ctx, dir) }},
		{"handshake and thaw", func() error { return introduce(ctx, client, b.token, b.n) }},
		{"first command by the guest's API", func() error {
			return execDirect(ctx, processconnect.NewProcessClient(client, "http://guest"), bareToken, "echo", "hello")
		}},
	}
	for _, step := range steps {
		began := time.Now()
		if err := step.run(); err != nil {
			return 0, fmt.Errorf("%s: %w", step.name, err)
		}
		took := time.Since(began).Seconds()
		b.took.add(step.name, took)
		seconds += took
	}
	return seconds, nil
}

// makeFar makes a namespace as Roost gives one to runsc, with a veth from the router's.
func (b *bareRunsc) makeFar() (far netns.NsHandle, err error) {
	far = netns.None()
	err = onThread(func() error {
		var err error
		if far, err = netns.New(); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err != nil {
			return err
		}
		if err := netns.Set(b.router); err != nil {
			return err
		}
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "port0", HardwareAddr: gatewayMAC}, PeerName: "eth0",
			PeerHardwareAddr: guestMAC, PeerNamespace: netlink.NsFd(far),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := setUpEnd("port0", "10.171.0.1/30", "10.171.0.2", guestMAC); err != nil {
			return err
		}
		if err := netns.Set(far); err != nil {
			return err
		}
		if err := setUpEnd("eth0", "10.171.0.2/30", "10.171.0.1", gatewayMAC); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("10.171.0.1")})
	})
	return far, err
}

var (
	gatewayMAC = net.HardwareAddr{0x02, 0x72, 0x6f, 0x73, 0x74, 0x01}
	guestMAC   = net.HardwareAddr{0x02, 0x72, 0x6f, 0x73, 0x74, 0x02}
)

// setUpEnd gives an interface of the thread's namespace its address, and lets it know the other end.
func setUpEnd(name, prefix, peer string, mac net.HardwareAddr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	known := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(peer), HardwareAddr: mac}
	return errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(link, addr), netlink.LinkSetUp(link), netlink.NeighSet(known))
}

// writeBundle is Roost's bundle with directory, uid, cgroup and namespace of its own.
func (b *bareRunsc) writeBundle(dir string, far netns.NsHandle) error {
	var spec map[string]any
	if err := json.Unmarshal(b.config, &spec); err != nil {
		return err
	}
	linux, is := spec["linux"].(map[string]any)
	if !is {
		return errors.New("bundle without linux")
	}
	spec["root"] = map[string]any{"path": filepath.Join(dir, "root")}
	ids := []map[string]any{{"containerID": 0, "hostID": bareUID + b.n, "size": 1}}
	linux["uidMappings"], linux["gidMappings"] = ids, ids
	if linux["cgroupsPath"] != nil {
		linux["cgroupsPath"] = "/" + b.cgroups() + "/" + strconv.Itoa(b.n)
	}
	spaces, is := linux["namespaces"].([]any)
	if !is {
		return errors.New("bundle without namespaces")
	}
	for _, space := range spaces {
		if one, is := space.(map[string]any); is && one["type"] == "network" {
			one["path"] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(far))
		}
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600)
}

func (b *bareRunsc) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	flags := append([]string{"--root=" + filepath.Join(dir, "s"), "--log=" + filepath.Join(dir, "log")}, b.flags...)
	return exec.CommandContext(ctx, b.runsc, append(flags, args...)...)
}

func (b *bareRunsc) restore(ctx context.Context, dir string) error {
	cmd := b.command(ctx, dir, "restore", "--detach", "--bundle="+dir, "--image-path="+b.image, "s")
	// What it prints to becomes the sandbox's, which was a pipe when it was saved.
	cmd.Stdout, cmd.Stderr = b.console, b.console
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(filepath.Join(dir, "log"))
		return fmt.Errorf("%w: %.1000s", err, said)
	}
	return nil
}

// end takes everything of a sample away.
func (b *bareRunsc) end(ctx context.Context, dir string, far netns.NsHandle) error {
	out, err := b.command(context.WithoutCancel(ctx), dir, "delete", "--force", "s").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("runsc delete: %w: %s", err, out)
	}
	gone := onThread(func() error {
		if err := netns.Set(b.router); err != nil {
			return err
		}
		link, err := netlink.LinkByName("port0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	return errors.Join(err, gone, far.Close(), os.RemoveAll(dir))
}

// againstBareRunsc compares create → first command with a bare restore → first command, and says
// where the time of both goes.
func (s *server) againstBareRunsc(ctx context.Context, pairs int) ([]harness.Result, error) {
	b, err := s.newBareRunsc(ctx)
	if err != nil {
		return nil, err
	}
	defer b.close()
	r, err := compare("create to first exec on gVisor ÷ `runsc restore` of the same checkpoint by a bare script to first exec",
		1.3, s.createExec(false), b.sample)(ctx, pairs)
	if err != nil {
		return nil, err
	}
	b.took.print("where the bare script's time goes")
	return r, s.profileCreate(ctx, 20)
}

// profileCreate prints where the time of a create and of a first command goes.
func (s *server) profileCreate(ctx context.Context, n int) error {
	var took phases
	for range n {
		began := time.Now()
		id, err := s.create(ctx, false)
		if err != nil {
			return err
		}
		created := time.Since(began).Seconds()
		began = time.Now()
		_, err = s.exec(ctx, id, "echo", "hello")
		executed := time.Since(began).Seconds()
		err = errors.Join(err, took.addOf(ctx, s, id, "create", created))
		took.add("first command, the whole call", executed)
		if err := errors.Join(err, s.delete(ctx, id)); err != nil {
			return err
		}
	}
	took.print("where Roost's time goes")
	return nil
}
