package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/test/trials"
)

// rewinder is a program that looks, at the beginning of each life of its sandbox, whether its file
// of 50 MB on the disk is what its memory says, then writes the file anew, and calls home: "GOOD
// BAD", how often it was and was not.
const rewinder = `cat >/root/rewind.py <<'EOF'
import hashlib, os, socket, time
def life(): return open("/run/roost/boot-marker").read()
def read():
    os.sync()
    try: open("/proc/sys/vm/drop_caches", "w").write("3")
    except OSError: pass
    return hashlib.blake2b(open("/root/large", "rb").read()).hexdigest()
def write():
    block = os.urandom(1 << 20)
    with open("/root/large", "r+b" if os.path.exists("/root/large") else "wb") as f:
        for n in range(50): f.write(block[n:] + block[:n])
        f.flush()
        os.fsync(f.fileno())
    return read()
def call():
    while True:
        try:
            with socket.create_connection(("%s", %d), 5) as s: s.sendall(f"{good} {bad}\n".encode())
            return
        except OSError: time.sleep(0.1)
good = bad = 0
while True:
    last, remembered = life(), write()
    call()
    while life() == last: time.sleep(0.02)
    if read() == remembered: good += 1
    else: bad += 1
EOF
setsid python3 /root/rewind.py >/dev/null 2>&1 </dev/null &`

// fileErrors is what the guest's kernel found wrong with its file system; gVisor has no such file.
const fileErrors = `find / -xdev -type f -exec cat {} + >/dev/null 2>&1; cat /sys/fs/ext4/*/errors_count 2>/dev/null | sort -n | tail -1; true`

// TestFailedStartIsUndone: what a guest wrote between its load and a failure of the start, 50 MB
// over its file, is gone with the next try, and the file system is whole.
func TestFailedStartIsUndone(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		var home net.Listener
		require.NoError(t, inNS(internet.ns, func() (err error) {
			home, err = net.Listen("tcp", publicAddr+":0")
			return err
		}))
		defer home.Close()
		id, want := r.small()
		r.sh(id, fmt.Sprintf(rewinder, publicAddr, home.Addr().(*net.TCPAddr).Port))
		require.Equal(t, "0 0", heard(t, home))
		s := trials.Begin(t, "50 MB written before a failed start", k.name, 1, 50)
		s.Each(func(t *testing.T, n int) {
			r := r.as(t)
			r.run("pause", id)
			for range 2 { // a retry that fails is no different
				r.failsLate(id, home, fmt.Sprintf("%d 0", n+1))
			}
			r.run("resume", id)
			require.Equal(t, fmt.Sprintf("%d 0", n+1), heard(t, home), "the disk is not what memory knows")
			r.holds(id, want)
		})
		require.Contains(t, []string{"", "0"}, r.sh(id, fileErrors))
		r.sound()
	})
}

// failsLate starts a sandbox, lets its program write and call home, and makes the start fail.
func (r *roost) failsLate(id string, home net.Listener, says string) {
	r.t.Helper()
	const point = "sandbox.start.thawed"
	r.arm(point, "hold")
	waking := r.background("resume", id)
	require.Equal(r.t, says, heard(r.t, home))
	r.arm(point, "error")
	require.Error(r.t, waking.Wait())
	r.disarm(point)
	require.Equal(r.t, paused, r.info(id).State)
	require.Empty(r.t, r.strays())
}

// heard is what the next who calls says.
func heard(t *testing.T, l net.Listener) string {
	t.Helper()
	require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(3*time.Minute)))
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	said, err := io.ReadAll(conn)
	require.NoError(t, err)
	return strings.TrimSpace(string(said))
}
