package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// attachEnv makes the test binary a VMM that opens its tap by itself: descriptor 3 is the tun
// device, opened inside its namespace. It says what came of it and waits for its input to end.
const attachEnv = "NETWORK_TEST_ATTACH"

func attachAsVMM() {
	f := os.NewFile(3, "tun")
	req, err := unix.NewIfreq(portName)
	if err == nil {
		req.SetUint16(tapFlags)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req)
	}
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		fmt.Println(unix.ErrnoName(errno))
	default:
		fmt.Println(err)
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0)
}

// attach runs a process of a uid in the slot's namespace that attaches to the tap, and holds it
// until detach is called.
func attach(t *testing.T, s *Slot, uid int) (said string, detach func()) {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer func() { _ = self.Close() }()
	hold, release, err := os.Pipe()
	require.NoError(t, err)
	answer, says, err := os.Pipe()
	require.NoError(t, err)
	id := uint32(uid)
	// The test binary lies where no other uid may look: it is reached by descriptor.
	cmd := &exec.Cmd{Path: "/proc/self/fd/4", Args: []string{"vmm"}, Env: []string{attachEnv + "=1"}, Dir: "/",
		Stdin: hold, Stdout: says, Stderr: t.Output(),
		SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}}
	// A process is born into the namespace of the thread that makes it.
	in(t, s.ns, func() error {
		tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer func() { _ = tun.Close() }()
		cmd.ExtraFiles = []*os.File{tun, self}
		return cmd.Start()
	})
	_ = says.Close()
	_ = hold.Close()
	detach = func() { _ = release.Close(); _ = cmd.Wait(); _ = answer.Close() }
	t.Cleanup(detach)
	buf := make([]byte, 64)
	n, err := answer.Read(buf)
	require.NoError(t, err)
	return strings.TrimSpace(string(buf[:n])), detach
}

// TestTapForOneUID: the kernel lets in the uid that the tap was given to, and no other; one at a
// time; and nobody any more once the agent has the tap itself.
func TestTapForOneUID(t *testing.T) {
	t.Parallel()
	const mine, other = 70123, 70124
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", Tap)
	refused := func(uid int) {
		t.Helper()
		said, detach := attach(t, s, uid)
		require.Equal(t, "EPERM", said, "uid %d", uid)
		detach()
	}
	refused(mine) // as it was made
	path, name, err := s.TapFor(mine)
	require.NoError(t, err)
	require.Equal(t, []string{nsDir + "/" + names(m.opt.Installation).namespace(s.Index()), portName}, []string{path, name})
	refused(other)
	said, detach := attach(t, s, mine)
	require.Equal(t, "<nil>", said)
	_, _, err = s.TapFor(other)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "the VMM is attached: %v", err)
	_, err = s.Tap()
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	detach()
	refused(other)
	_, _, err = s.TapFor(other)
	require.NoError(t, err)
	refused(mine)
	f, err := s.Tap()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	refused(other) // the agent has taken it back
}

func TestTapForIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(w.options())
	s, veth := acquire(t, m, "sb1", Tap), acquire(t, m, "sb2", Veth)
	for _, uid := range []int{0, -1} {
		_, _, err := s.TapFor(uid)
		require.True(t, fault.Is(err, fault.Invalid), "uid %s: %v", strconv.Itoa(uid), err)
	}
	_, _, err := veth.TapFor(70123)
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	require.NoError(t, m.Release(t.Context(), s))
	_, _, err = s.TapFor(70123)
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
}

// TestProcessInTheRouterReachesItsGuestOnly: a VMM that opens its tap lives in the router, where
// no forward rule sees what it sends by itself.
func TestProcessInTheRouterReachesItsGuestOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", Tap)
	g := w.guest(s)
	serveTCP(t, g.ns, webPort)
	_, err := dial(s.ns, GuestAddr.String(), webPort)
	require.NoError(t, err)
	for _, addr := range []string{siteA, hostPublic, hostPrivate, lanPeer, metadataAddr} {
		_, err := dialDenied(s.ns, addr, webPort)
		require.Error(t, err, addr)
		require.Zero(t, w.seen.to(addr), addr)
	}
}
