package boot

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	processpb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	guestpb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
)

const bootToken = "boot-token"

func userNetwork(root string) Config {
	return Config{
		ControlToken: bootToken, RootDevice: root, Hostname: "booted", Address: "10.0.2.15/24", Gateway: "10.0.2.2",
		DNS: "10.0.2.3", DefaultUser: "user",
	}
}

// TestBootsInARealVM goes from the kernel to a command run as the user, with nothing in the
// VM but roost-guest and a disk with busybox.
func TestBootsInARealVM(t *testing.T) {
	t.Parallel()
	m := startVM(t, userNetwork("/dev/vda"))
	m.waitHealthy()
	t.Logf("health after %v", time.Since(m.started).Round(time.Millisecond))

	control := guestv1connect.NewControlClient(http.DefaultClient, m.url)
	host := time.Now().Add(72 * time.Hour) // far from what the VM's clock says
	restore := controlled(&guestpb.RestoreRequest{
		SandboxId: "vm1", Generation: 3, WallClockNs: host.UnixNano(), Entropy: bytes.Repeat([]byte{7}, 64),
		Hostname: "renamed", MachineId: "0123456789abcdef0123456789abcdef", AccessToken: "access", ControlToken: "next",
		DefaultUser: "user", Envs: map[string]string{"FROM": "restore"}, Grow: true,
	}, bootToken)
	began := time.Now()
	res, err := control.Restore(t.Context(), restore)
	require.NoError(t, err, "%s", m.console())
	t.Logf("restore took %v", time.Since(began).Round(time.Millisecond))
	facts := res.Msg
	require.Equal(t, "renamed", facts.GetHostname())
	require.True(t, facts.GetRandomReseeded())
	require.InDelta(t, host.Add(time.Since(began)).UnixNano(), facts.GetClockNs(), float64(10*time.Second))
	require.Greater(t, facts.GetRootBytes(), int64(diskMB-20)<<20, "the file system must have grown to its device")
	_, err = control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 3}, "next"))
	require.NoError(t, err)

	began = time.Now()
	require.Equal(t, "hi\n", m.exec("echo hi"))
	t.Logf("first command took %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	require.Equal(t, "hi\n", m.exec("echo hi"))
	t.Logf("second command took %v", time.Since(began).Round(time.Millisecond))

	require.Equal(t, "1000 user /home/user restore\n", m.exec("echo $(id -u) $(whoami) $PWD $FROM"))
	require.Equal(t, "renamed renamed\n", m.exec("echo $(hostname) $(cat /etc/hostname)"))
	require.Equal(t, "0123456789abcdef0123456789abcdef 3 vm1\n", m.exec("echo $(cat /etc/machine-id /run/roost/generation /run/roost/sandbox-id)"))
	require.Equal(t, "nameserver 10.0.2.3\n", m.exec("cat /etc/resolv.conf"))
	require.Contains(t, m.exec("cat /etc/hosts"), "renamed")
	require.Contains(t, m.exec("cat /proc/mounts"), "/dev/vda / ext4 rw,noatime")
	require.Contains(t, m.exec("cat /proc/self/cgroup"), "0::/user/p-")
	require.Equal(t, "ok\n", m.exec("for d in /dev/pts /dev/shm /run /tmp /sys /proc; do test -d $d || echo no $d; done; echo x > /dev/shm/x && echo ok"))
	require.Equal(t, "gone\n", m.exec("test -e /roost || echo gone"))
	require.InDelta(t, host.Unix(), m.number("date +%s"), 120)
}

// TestInitReapsInARealVM leaves orphans to PID 1 while commands run, and wants every status
// right and no zombie left.
func TestInitReapsInARealVM(t *testing.T) {
	t.Parallel()
	m := startVM(t, userNetwork("/dev/vda"))
	m.waitHealthy()
	m.restore()
	for i := range 20 {
		out, code := m.run(fmt.Sprintf("(sleep 0.05 &) ; (sleep 0.01 &); echo n%d; exit %d", i, i+1))
		require.Equal(t, fmt.Sprintf("n%d\n", i), out)
		require.EqualValues(t, i+1, code)
	}
	require.Equal(t, "0\n", m.exec("sleep 0.5; grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"))
	_, code := m.run("kill -TERM 1; sleep 0.1; exit 6") // as the user: refused, and harmless anyway
	require.EqualValues(t, 6, code)
}

// TestFailedBootEndsTheVM wants a reason on the console and QEMU gone.
func TestFailedBootEndsTheVM(t *testing.T) {
	t.Parallel()
	m := startVM(t, userNetwork("/dev/vdz"))
	select {
	case <-m.exited:
	case <-time.After(60 * time.Second):
		require.Fail(t, "QEMU is still there", "%s", m.console())
	}
	require.Contains(t, m.console(), "roost-guest: cannot run: wait for device /dev/vdz")
}

func controlled[T any](msg *T, token string) *connect.Request[T] {
	req := connect.NewRequest(msg)
	req.Header().Set("X-Control-Token", token)
	return req
}

func (m *machine) restore() {
	m.t.Helper()
	control := guestv1connect.NewControlClient(http.DefaultClient, m.url)
	_, err := control.Restore(m.t.Context(), controlled(&guestpb.RestoreRequest{
		SandboxId: "vm1", Generation: 1, WallClockNs: time.Now().UnixNano(), Entropy: make([]byte, 32), Hostname: "vm1",
		MachineId: "0123456789abcdef0123456789abcdef", AccessToken: "access", ControlToken: "next", DefaultUser: "user",
	}, bootToken))
	require.NoError(m.t, err, "%s", m.console())
	_, err = control.Thaw(m.t.Context(), controlled(&guestpb.ThawRequest{Generation: 1}, "next"))
	require.NoError(m.t, err)
}

// run runs a shell command in the VM.
func (m *machine) run(script string) (string, int32) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 60*time.Second)
	defer cancel()
	req := connect.NewRequest(&processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "sh", Args: []string{"-c", script}}})
	req.Header().Set("X-Access-Token", "access")
	stream, err := processconnect.NewProcessClient(http.DefaultClient, m.url).Start(ctx, req)
	require.NoError(m.t, err)
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
	require.NoError(m.t, stream.Err(), "%s", m.console())
	return out.String(), code
}

func (m *machine) exec(script string) string {
	m.t.Helper()
	out, code := m.run(script)
	require.Zero(m.t, code, "%s", out)
	return out
}

func (m *machine) number(script string) (n int64) {
	m.t.Helper()
	_, err := fmt.Sscan(m.exec(script), &n)
	require.NoError(m.t, err)
	return n
}

func (m *machine) console() string {
	data, _ := os.ReadFile(m.log)
	return string(data)
}
