package guest_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	processpb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	guestpb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
)

const (
	insideVariable = "ROOST_TEST_INSIDE"
	bootToken      = "boot-token"
	guestURL       = "http://127.0.0.1:49983"
)

// TestMain lets this binary be a client inside the sandbox, which has no network.
func TestMain(m *testing.M) {
	part := os.Getenv(insideVariable)
	if part == "" {
		os.Exit(m.Run())
	}
	if err := inside(part); err != nil {
		fmt.Println("FAILED:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// inside is one of three parts: from the guest's start to commands in its second life, a freeze
// with a process that ticks, and the third life, which finds it.
func inside(part string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	c := &client{control: guestv1connect.NewControlClient(http.DefaultClient, guestURL), process: processconnect.NewProcessClient(http.DefaultClient, guestURL)}
	for _, step := range map[string][]func(context.Context) error{
		"life":   {c.waitHealthy, c.namesAtTheStart, c.refusesAWrongClock, c.restore, c.commands, c.attributes, c.stats, c.export, c.secondLife},
		"freeze": {c.startTicking, c.freeze},
		"thaw":   {c.waitHealthy, c.stillFrozen, c.thirdLife},
	}[part] {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

type client struct {
	control guestv1connect.ControlClient
	process processconnect.ProcessClient
}

func (c *client) waitHealthy(ctx context.Context) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, guestURL+"/health", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			return errors.Join(res.Body.Close(), want("health", res.StatusCode, http.StatusNoContent))
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func want[T comparable](what string, got, wanted T) error {
	if got != wanted {
		return fmt.Errorf("%s is %v, not %v", what, got, wanted)
	}
	return nil
}

func (c *client) namesAtTheStart(context.Context) error {
	name, err := os.Hostname()
	resolv, rerr := os.ReadFile("/etc/resolv.conf")
	hosts, herr := os.ReadFile("/etc/hosts")
	return errors.Join(err, rerr, herr, want("host name", name, "booted"), want("resolv.conf", string(resolv), "nameserver 192.0.2.1\n"),
		want("our line of hosts", strings.Contains(string(hosts), "127.0.1.1 booted # roost"), true))
}

func request(generation uint64) *guestpb.RestoreRequest {
	return &guestpb.RestoreRequest{
		SandboxId: "sandbox1", Generation: generation, WallClockNs: time.Now().UnixNano(), Entropy: make([]byte, 64),
		Hostname: fmt.Sprint("life-", generation), MachineId: "0123456789abcdef0123456789abcdef", AccessToken: "access",
		ControlToken: token(generation), DefaultUser: "user", Envs: map[string]string{"GIVEN": "yes"}, Grow: true,
	}
}

func token(generation uint64) string {
	if generation == 0 {
		return bootToken
	}
	return fmt.Sprint("control-", generation)
}

func controlled[T any](msg *T, generation uint64) *connect.Request[T] {
	req := connect.NewRequest(msg)
	req.Header().Set("X-Control-Token", token(generation))
	return req
}

func (c *client) refusesAWrongClock(ctx context.Context) error {
	wrong := request(1)
	wrong.WallClockNs = time.Now().Add(-time.Hour).UnixNano()
	_, err := c.control.Restore(ctx, controlled(wrong, 0))
	return want("code of a wrong clock", connect.CodeOf(err), connect.CodeFailedPrecondition)
}

func (c *client) restore(ctx context.Context) error { return c.begin(ctx, 1) }

func (c *client) begin(ctx context.Context, generation uint64) error {
	began := time.Now()
	res, err := c.control.Restore(ctx, controlled(request(generation), generation-1))
	if err != nil {
		return err
	}
	restored := time.Now()
	if _, err := c.control.Thaw(ctx, controlled(&guestpb.ThawRequest{Generation: generation}, generation)); err != nil {
		return err
	}
	fmt.Printf("generation %d: restore %v, thaw %v\n", generation, restored.Sub(began), time.Since(restored))
	facts := res.Msg
	name, err := os.Hostname()
	return errors.Join(err, want("host name of the kernel", name, fmt.Sprint("life-", generation)), want("host name", facts.GetHostname(), name),
		want("clock moved", facts.GetClockSteppedNs(), 0), want("random source is fresh", facts.GetRandomReseeded(), true),
		want("size of the disk", facts.GetRootBytes(), diskMB<<20))
}

// sh runs a line as the user.
func (c *client) sh(ctx context.Context, line string) (string, error) {
	req := connect.NewRequest(&processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "sh", Args: []string{"-c", line}}})
	req.Header().Set("X-Access-Token", "access")
	stream, err := c.process.Start(ctx, req)
	if err != nil {
		return "", err
	}
	defer func() { _ = stream.Close() }()
	var out strings.Builder
	code := int32(-2)
	for stream.Receive() {
		e := stream.Msg().GetEvent()
		out.Write(e.GetData().GetStdout())
		out.Write(e.GetData().GetStderr())
		if e.GetEnd() != nil {
			code = e.GetEnd().GetExitCode()
		}
	}
	return out.String(), errors.Join(stream.Err(), want("exit code of "+line, code, 0))
}

func (c *client) commands(ctx context.Context) error {
	for _, a := range []struct{ line, answer string }{
		{"id -u; id -G; echo $HOME $GIVEN", "1000\n1000 1001\n/home/user yes\n"},
		{"suid-id -u; cp /usr/bin/suid-id /tmp/id; /tmp/id -u; touch /tmp/mine; stat -c %u:%g /tmp/mine", "0\n1000\n1000:1000\n"},
		{"(sleep 0.05 &); (sleep 0.01 &); exit 0", ""},
		{"env | grep -c ROOST_CONTROL || true", "0\n"},
		{"echo x > /dev/shm/x && echo x > /tmp/x && cat /dev/shm/x /tmp/x", "x\nx\n"},
		{"test -w / || echo no; stat -c %a /tmp /run/lock", "no\n1777\n1777\n"},
		{"kill -KILL 1 2>/dev/null || echo refused", "refused\n"},
	} {
		began := time.Now()
		out, err := c.sh(ctx, a.line)
		fmt.Printf("%v for %s\n", time.Since(began), a.line)
		if err := errors.Join(err, want("output of "+a.line, out, a.answer)); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) stats(ctx context.Context) error {
	read := func() (*guestpb.StatsResponse, error) {
		res, err := c.control.Stats(ctx, controlled(&guestpb.StatsRequest{}, 1))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	before, err := read()
	if err != nil {
		return err
	}
	if _, err := c.sh(ctx, "head -c 20971520 /dev/zero > /home/user/20mb; (sleep 1000 > /dev/null 2>&1 &)"); err != nil {
		return err
	}
	after, err := read()
	if err != nil {
		return err
	}
	used := int64(after.GetDiskUsedBytes()) - int64(before.GetDiskUsedBytes())
	return errors.Join(want("disk total", after.GetDiskTotalBytes(), diskMB<<20), want("disk used grows by what was written", used >= 20<<20 && used < 24<<20, true),
		want("processes", after.GetProcesses(), 1), want("memory used is less than all", after.GetMemoryUsedBytes() < after.GetMemoryTotalBytes(), true))
}

// attributes: those of the user and of root.
func (c *client) attributes(context.Context) error {
	for _, name := range []string{"user.roost", "trusted.roost"} {
		got := make([]byte, 16)
		err := unix.Setxattr("/home/user", name, []byte("value"), 0)
		n, gerr := unix.Getxattr("/home/user", name, got)
		if err := errors.Join(err, gerr); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := want(name, string(got[:n]), "value"); err != nil {
			return err
		}
	}
	return nil
}

// export: the root's files, none of another mount, and as a template has them.
func (c *client) export(ctx context.Context) error {
	if _, err := c.sh(ctx, "head -c 1048576 /dev/zero | tr '\\0' x > /home/user/data; ln /home/user/data /home/user/hard; mkfifo /tmp/fifo"); err != nil {
		return err
	}
	const sparse = "/home/user/sparse"
	if err := errors.Join(os.WriteFile(sparse, []byte("begin"), 0o644), os.Truncate(sparse, 1<<30),
		unix.Mount("tmpfs", "/var", "tmpfs", 0, ""),
		os.WriteFile("/var/hidden", nil, 0o644)); err != nil {
		return err
	}
	began := time.Now()
	found, bytes, err := c.stream(ctx)
	fmt.Printf("export: %d files, %d bytes in %v\n", len(found), bytes, time.Since(began))
	if err != nil {
		return err
	}
	for name := range found {
		for _, other := range []string{"proc/", "sys/", "dev/", "run/", "var/"} {
			if strings.HasPrefix(name, other) && name != other {
				return fmt.Errorf("%s is not the root's", name)
			}
		}
	}
	text := func(name string, h *tar.Header) error {
		if found[name] == nil {
			return fmt.Errorf("%s is not exported", name)
		}
		got := found[name]
		return errors.Join(want(name+" type", got.Typeflag, h.Typeflag), want(name+" mode", got.Mode, h.Mode),
			want(name+" owner", got.Uid, h.Uid), want(name+" link", got.Linkname, h.Linkname))
	}
	return errors.Join(
		text("proc/", &tar.Header{Typeflag: tar.TypeDir, Mode: 0o555}), text("run/", &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}),
		text("home/user/data", &tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Uid: 1000}),
		text("home/user/hard", &tar.Header{Typeflag: tar.TypeLink, Mode: 0o644, Uid: 1000, Linkname: "home/user/data"}),
		text("usr/bin/suid-id", &tar.Header{Typeflag: tar.TypeReg, Mode: 0o4755}), text("bin", &tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "usr/bin"}),
		want("machine id", found["etc/machine-id"].Size, 0), want("host name", found["etc/hostname"].Size, int64(len("roost\n"))),
		want("an attribute", found["home/user/"].PAXRecords["SCHILY.xattr.user.roost"], "value"),
		want("the list of attributes", found[".roost-attributes"] == nil, true),
		want("a capability that nobody has", found["usr/bin/env"].PAXRecords["SCHILY.xattr.security.capability"], ""),
		want("a capability of the tree's", found["usr/bin/suid-id"].PAXRecords["SCHILY.xattr.security.capability"], capability),
		want("a hole", found["home/user/sparse"].PAXRecords["ROOST.sparse.size"], "1073741824"),
		want("bytes are the root's and no hole's", bytes < 200<<20, true), unix.Unmount("/var", 0))
}

// capability is cap_chown=ep, rawCapability cap_net_raw=ep, which gVisor gives nobody.
const (
	capability    = "\x01\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	rawCapability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

func (c *client) stream(ctx context.Context) (map[string]*tar.Header, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, guestURL+"/roost/export", nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("X-Control-Token", token(1))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = res.Body.Close() }()
	found, bytes := map[string]*tar.Header{}, int64(0)
	for files := tar.NewReader(res.Body); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		found[h.Name] = h
		bytes += h.Size
	}
	_, err = io.Copy(io.Discard, res.Body)
	return found, bytes, errors.Join(err, want("the trailer", res.Trailer.Get("Roost-Export"), "whole"))
}

// secondLife begins with a process of the first.
func (c *client) secondLife(ctx context.Context) error {
	if err := c.begin(ctx, 2); err != nil {
		return err
	}
	out, err := c.sh(ctx, "hostname; cat /run/roost/generation; grep -l 'State:.*[TZ]' /proc/[0-9]*/status | wc -l")
	return errors.Join(err, want("what the second life sees", out, "life-2\n2\n0\n"))
}

const ticks = "/home/user/ticks"

func (c *client) startTicking(ctx context.Context) error {
	_, err := c.sh(ctx, "(while :; do echo tick >> "+ticks+"; done > /dev/null 2>&1 &)")
	return errors.Join(err, waitForTick(ctx, 0))
}

func waitForTick(ctx context.Context, after int64) error {
	for {
		info, err := os.Stat(ticks)
		if err == nil && info.Size() > after {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("no tick: %w", ctx.Err()))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (c *client) freeze(ctx context.Context) error {
	began := time.Now()
	res, err := c.control.Freeze(ctx, controlled(&guestpb.FreezeRequest{}, 2))
	if err != nil {
		return err
	}
	fmt.Printf("freeze %v\n", time.Since(began))
	return want("frozen processes", res.Msg.GetProcesses(), 2)
}

func (c *client) stillFrozen(ctx context.Context) error {
	stats, err := c.control.Stats(ctx, controlled(&guestpb.StatsRequest{}, 2))
	if err != nil {
		return err
	}
	return want("processes", stats.Msg.GetProcesses(), 2)
}

func (c *client) thirdLife(ctx context.Context) error {
	info, err := os.Stat(ticks)
	if err != nil {
		return err
	}
	return errors.Join(c.begin(ctx, 3), waitForTick(ctx, info.Size()))
}
