package vmmtest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

const (
	memoryMB = 256
	diskMB   = 64
	// answerTime is how long a guest may take to answer: it boots translated, on a machine
	// that runs other tests.
	answerTime = 90 * time.Second
)

// machine is what one VM of a test stands on.
type machine struct {
	cfg vmm.Config
	net *network
}

var nextUID atomic.Int32

// newMachine makes directory, network, disk and a shared memfd.
func (s *suite) newMachine(t testing.TB) *machine {
	t.Helper()
	uid := 70000 + int(nextUID.Add(1)) + 1000*(os.Getpid()%1000)
	m := &machine{net: newNetwork(t)}
	m.cfg = vmm.Config{
		ID: fmt.Sprintf("vm%d", uid), Dir: privateDir(t), VCPUs: 1, MemoryMB: memoryMB,
		Kernel: s.fixtures.Kernel, Initrd: s.fixtures.Initrd,
		Cmdline: "quiet vmmtest.addr=" + guestAddr,
		Tap:     m.net.tap, MAC: guestMAC,
		Drive:  []vmm.Node{newDisk(t)},
		Memory: vmm.Memory{File: newMemory(t, memoryMB), Shared: true},
		UID:    uid, GID: uid,
	}
	return m
}

func privateDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	require.NoError(t, os.Mkdir(dir, 0o700))
	return dir
}

func newDisk(t testing.TB) vmm.Node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, diskMB<<20))
	return vmm.Node{Path: path, Format: "raw"}
}

// overlay makes a qcow2 file over the drive and returns the drive with it on top.
func overlay(t testing.TB, drive []vmm.Node, sizeMB int) []vmm.Node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "top.qcow2")
	// No backing file stands in the header: the drive alone says what it stands on.
	require.NoError(t, run("/", "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprintf("%dM", sizeMB)))
	var out []vmm.Node
	for _, n := range drive {
		n.ReadOnly = true
		out = append(out, n)
	}
	return append(out, vmm.Node{Path: path, Format: "qcow2"})
}

func newMemory(t testing.TB, mb int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("vmmtest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), "vmmtest memory")
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, f.Truncate(int64(mb)<<20))
	return f
}

func seal(t testing.TB, f *os.File) {
	t.Helper()
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	require.NoError(t, err)
}

// boot boots m and kills it at the test's end.
func (s *suite) boot(t testing.TB, m *machine) vmm.VM {
	t.Helper()
	vm, err := s.driver(t).Boot(t.Context(), m.cfg)
	require.NoError(t, err)
	killAtEnd(t, vm)
	return vm
}

func killAtEnd(t testing.TB, vm vmm.VM) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if t.Failed() {
			text, _ := vm.Console()
			t.Logf("console of %d:\n%s", vm.Handle().PID, text[max(0, len(text)-4000):])
		}
		if err := vm.Kill(ctx); !fault.Is(err, fault.FailedPrecondition) { // detached: somebody else's
			require.NoError(t, err)
		}
	})
}

// guest is a connection to a guest's init.
type guest struct {
	conn net.Conn
	in   *bufio.Reader
}

// reach connects to the guest of m as soon as it listens.
func (m *machine) reach(t testing.TB) *guest {
	t.Helper()
	g, err := m.tryReach(answerTime)
	require.NoError(t, err, "the guest does not listen")
	t.Cleanup(func() { _ = g.conn.Close() })
	return g
}

func (m *machine) tryReach(most time.Duration) (*guest, error) {
	deadline := time.Now().Add(most)
	for {
		conn, err := m.net.dial(time.Second)
		if err == nil {
			return &guest{conn, bufio.NewReader(conn)}, nil
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(5 * time.Millisecond) // refused: the guest is up and init is not
	}
}

// tell sends a command that may have no answer.
func (g *guest) tell(t testing.TB, command string) {
	t.Helper()
	_, err := fmt.Fprintln(g.conn, command)
	require.NoError(t, err)
}

func (g *guest) ask(t testing.TB, command string) string {
	t.Helper()
	g.tell(t, command)
	return g.answer(t)
}

func (g *guest) answer(t testing.TB) string {
	t.Helper()
	require.NoError(t, g.conn.SetReadDeadline(time.Now().Add(answerTime)))
	line, err := g.in.ReadString('\n')
	require.NoError(t, err)
	line = strings.TrimSuffix(line, "\n")
	require.False(t, strings.HasPrefix(line, "error "), line)
	return line
}

// silent reports whether the guest leaves a command unanswered for d.
func (g *guest) silent(t testing.TB, command string, d time.Duration) bool {
	t.Helper()
	g.tell(t, command)
	require.NoError(t, g.conn.SetReadDeadline(time.Now().Add(d)))
	_, err := g.in.Peek(1)
	return err != nil && os.IsTimeout(err)
}
