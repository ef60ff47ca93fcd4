package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, into))
}

// TestNetwork: from inside a real guest the outside is reachable, the host, private ranges and
// metadata are not; nor is another sandbox, nor this one's own guest agent without its token.
func TestNetwork(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, other := r.run("create"), r.run("create")
		get := func(url string) result {
			return r.try("exec", id, "--", "curl", "-sS", "-m", "5", url)
		}
		for _, url := range []string{"http://" + publicAddr + ":8080/", "http://public.example:8080/"} {
			require.Equal(t, greeting, get(url).stdout, url)
		}
		var slot struct {
			Slot int `json:"slot"`
		}
		readJSON(t, filepath.Join(r.data, "sandboxes", other, "journal.json"), &slot)
		denied := []string{metadataAddr, privateAddr, hostPublic, "10.171.0.1", "127.0.0.1", "192.168.0.1", "100.64.0.1", "172.16.0.1", "rebind.example"}
		for _, host := range denied {
			res := get(fmt.Sprintf("http://%s:%d/", host, httpPort))
			require.NotZero(t, res.code, host)
			require.Empty(t, res.stdout, host)
		}
		res := r.try("exec", id, "--", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:49983/files?path=/etc/hostname")
		require.Equal(t, "401", res.stdout, "the guest agent wants its token")
		res = r.try("exec", id, "--", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-H", "Content-Type: application/json", "-d", "{}", "http://127.0.0.1:49983/roost.guest.v1.Control/Freeze")
		require.Equal(t, "401", res.stdout, "and its control token")
		r.run("pause", id)
		r.run("resume", id)
		require.Equal(t, greeting, get("http://public.example:8080/").stdout, "the network works after a resume")
		require.NotZero(t, get("http://"+metadataAddr+":8080/").code)
	})
}

// TestTwoInstallations: one machine, two of them; one is killed, restarted, collects and is
// uninstalled; the other is untouched.
func TestTwoInstallations(t *testing.T) {
	t.Parallel()
	a, b := start(t), start(t)
	id := a.run("create")
	secret := strings.Fields(a.sh(id, counter))[0]
	for range 2 {
		gone := b.run("create")
		b.kill()
		b.up()
		b.run("rm", gone)
	}
	_, n := a.count(id)
	a.stillCounts(id, secret, n)
	b.stop()
	out, err := exec.Command(roostBin, "uninstall", "--data", b.data, "--yes", "--keep-images").CombinedOutput()
	require.NoError(t, err, string(out))
	a.stillCounts(id, secret, n+1)
	require.Equal(t, greeting, a.run("exec", id, "--", "curl", "-s", "http://"+publicAddr+":8080/")+"\n")
}

// TestHostMissing: what is wrong with the host is said in doctor's words, and stops nobody who
// does not need it.
func TestHostMissing(t *testing.T) {
	t.Parallel()
	r := install(t)
	r.up("PATH=/nonexistent") // no QEMU: gVisor is enough
	id := r.run("create")
	require.Equal(t, v1.Isolation("sentry"), r.info(id).Isolation)
	res := r.try("create", "--runtime", "qemu")
	require.NotZero(t, res.code)
	require.Contains(t, res.stderr, "apt-get install qemu-system-x86")
	second := exec.Command(roostBin, "up", "--data", r.data, "--listen", "127.0.0.1:0", "--accel", "tcg")
	out, err := second.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "another roost runs on it")
	res = r.try("doctor")
	require.Equal(t, 1, res.code, "no template can be built here")
	require.Contains(t, res.stdout, "apt-get install erofs-utils")
	var doctor struct {
		Host v1.Host `json:"host"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.try("doctor", "--json").stdout), &doctor))
	require.EqualValues(t, "sentry", doctor.Host.Isolation)
	r.stop()
	r.extra = []string{"--runtime", "qemu"}
	require.ErrorContains(t, r.tryUp("PATH=/nonexistent"), "apt-get install qemu-system-x86")
	r.extra = []string{"--runtime", "gvisor"}
	require.ErrorContains(t, r.tryUp("PATH=/nonexistent", "ROOST_RUNSC=/nonexistent/runsc"), "runsc")
	r.extra = nil
}

// TestVMConfined: every VM has a uid of its own and nothing of another's.
func TestVMConfined(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		a, b := r.vmPID(r.run("create")), r.vmPID(r.run("create"))
		uids := map[string]bool{}
		for _, pid := range []int{a, b} {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			require.NoError(t, err)
			for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "Groups:\t \n"} {
				require.Contains(t, string(status), want)
			}
			for line := range strings.Lines(string(status)) {
				if strings.HasPrefix(line, "Uid:") {
					uids[line] = true
				}
			}
			mine, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
			require.NoError(t, err)
			host, err := os.Readlink("/proc/self/ns/net")
			require.NoError(t, err)
			require.NotEqual(t, host, mine)
		}
		require.Len(t, uids, 2)
	})
}
