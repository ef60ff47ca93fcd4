package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// TestRuntimes: a host without KVM takes gVisor by itself, says so and why, and gives another
// runtime to those who ask for it; every answer names the isolation.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	r := start(t)
	fast, vm := r.run("create"), r.run("create", "--runtime", "qemu")
	for id, k := range map[string]kind{fast: kinds[0], vm: kinds[1]} {
		s := r.info(id)
		require.Equal(t, k.name, s.Runtime)
		require.Equal(t, k.isolation, s.Isolation)
		require.Contains(t, r.run("info", id), k.isolation)
		kernel := r.sh(id, "dmesg | head -20")
		require.Equal(t, !k.virtual, strings.Contains(kernel, "gVisor"), kernel)
		secret := strings.Fields(r.sh(id, counter))[0]
		r.run("pause", id)
		r.run("resume", id)
		r.stillCounts(id, secret, 0)
		require.Equal(t, k.name, r.info(id).Runtime, "it wakes where it slept")
	}
	list := r.run("ls")
	require.Contains(t, list, "sentry")
	require.Contains(t, list, "emulated")
	res := r.try("create", "--runtime", "nosuch")
	require.NotZero(t, res.code)
	require.Contains(t, res.stderr, "gvisor")
	require.Contains(t, res.stderr, "qemu")
	doctor := r.run("doctor")
	require.Contains(t, doctor, "gvisor")
	require.Contains(t, doctor, "qemu")
	require.Contains(t, doctor, "Firecracker")
}

// TestUpgrade: a sandbox that was paused on one build of runsc, or runs on it, goes on after the
// host has another, which cannot load its checkpoint; a build that nobody needs any more goes.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	other := otherRunsc(t)
	r := start(t, kinds[0].flags()...)
	paused, running := r.run("create"), r.run("create")
	secrets := map[string]string{}
	for _, id := range []string{paused, running} {
		secrets[id] = strings.Fields(r.sh(id, counter))[0]
	}
	r.run("pause", paused)
	old := builds(t, r)
	require.Len(t, old, 1)
	r.stop()
	r.up("ROOST_RUNSC=" + other)
	require.Len(t, builds(t, r), 2)
	fresh := r.run("create")
	require.Equal(t, "new", r.run("exec", fresh, "--", "echo", "new"))
	_, n := r.count(running)
	r.stillCounts(running, secrets[running], n)
	r.run("pause", running)
	for _, id := range []string{paused, running} {
		r.run("resume", id)
		r.stillCounts(id, secrets[id], 0)
	}
	r.run("rm", paused, running)
	r.kill()
	r.up("ROOST_RUNSC=" + other) // a start collects
	require.NotContains(t, builds(t, r), old[0], "nothing needs the old build")
	require.Equal(t, "still", r.run("exec", fresh, "--", "echo", "still"))
}

// otherRunsc is a build of another version.
func otherRunsc(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("ROOST_RUNSC_OTHER"); path != "" {
		return path
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	path := filepath.Join(root, ".cache", "test", "runsc-other")
	out, err := exec.Command("make", "--no-print-directory", "-C", root, "runsc", "OUT="+path, "VERSION=other").CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

// builds of runsc that the installation keeps.
func builds(t *testing.T, r *roost) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.data, "builds", "runsc-*"))
	require.NoError(t, err)
	return found
}

// TestOutOfMemory: what takes more memory than its sandbox has ends, with the reason; another
// sandbox does not notice. (In a VM the guest's kernel sees to it: package runtimetest.)
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	r := start(t)
	greedy, other := r.run("create", "--memory-mb", "256"), r.run("create", "--memory-mb", "256")
	secret := strings.Fields(r.sh(other, counter))[0]
	res := r.try("exec", greedy, "--", "python3", "-c", "b = [bytearray(1 << 20) for _ in range(2000)]; print('took it all')")
	require.NotContains(t, res.stdout, "took it all")
	require.NotZero(t, res.code)
	eventually(t, deathLimit, "the sandbox is failed, or as before", func() bool {
		if s := r.info(greedy); s.State == v1.Failed {
			require.Contains(t, *s.Reason, "memory")
			return true
		}
		return r.try("exec", greedy, "--", "true").code == 0
	})
	_, n := r.count(other)
	r.stillCounts(other, secret, n)
}

// TestConnectionsOfAnotherLife: a connection that was open when a sandbox paused is over for the
// other side, and nothing of it arrives in, or comes from, whoever has its slot next.
func TestConnectionsOfAnotherLife(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		var listener net.Listener
		require.NoError(t, inNS(internet.ns, func() (err error) {
			listener, err = net.Listen("tcp", publicAddr+":0")
			return err
		}))
		defer listener.Close()
		port := listener.Addr().(*net.TCPAddr).Port
		id := r.run("create")
		r.sh(id, fmt.Sprintf(`cat >/root/talk.py <<'EOF'
import socket, time
s = socket.create_connection(("%s", %d))
n = 0
try:
    while True:
        n += 1
        s.sendall(b"line %%d\n" %% n)
        time.sleep(0.05)
except OSError as e:
    open("/root/over", "w").write(str(e))
EOF
setsid python3 /root/talk.py >/dev/null 2>&1 </dev/null &`, publicAddr, port))
		conn, err := listener.Accept()
		require.NoError(t, err)
		defer conn.Close()
		lines := bufio.NewReader(conn)
		_, err = lines.ReadString('\n')
		require.NoError(t, err)
		r.run("pause", id)
		next := r.run("create") // takes the slot that has become free, or any other
		require.Equal(t, "quiet", r.run("exec", next, "--", "echo", "quiet"))
		r.run("resume", id)
		_, err = conn.Write([]byte("to a life that is over\n"))
		require.NoError(t, err)
		eventually(t, time.Minute, "the program learns that its connection is over", func() bool {
			return r.try("exec", "--user", "root", id, "--", "test", "-e", "/root/over").code == 0
		})
		remote := fmt.Sprintf(":%04X", port)
		require.NotContains(t, r.sh(next, "cat /proc/net/tcp"), remote)
	})
}
