package uids

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// helperEnv makes the test binary a process that a hostile guest could be.
const helperEnv = "UIDS_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		hide()
	}
	os.Exit(m.Run())
}

// hide does what a process can to be overlooked: it is not dumpable, so that most of /proc/PID
// is root's, and its first thread ends, so that it looks like a zombie.
func hide() {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		os.Exit(1)
	}
	go func() { time.Sleep(time.Minute) }()
	_, _ = os.Stdout.WriteString("ready")
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0) // of this thread alone
}

func init() { runtime.LockOSThread() } // main runs on the first thread

// testBlock lies outside of what installations use.
const testBlock = Block(1_900_000)

// spawn starts a process under a uid and reaps it when it ends.
func spawn(t *testing.T, uid int, name string, args ...string) (*exec.Cmd, <-chan struct{}) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	return cmd, ended
}

func TestBlocks(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, Blocks - 1, Blocks, 3 * Blocks} {
		b := NewBlock(n)
		require.True(t, b.Valid())
		require.GreaterOrEqual(t, int(b), First)
		require.LessOrEqual(t, int(b)+BlockSize, Last)
		require.True(t, b.Contains(b.UID(0)))
		require.True(t, b.Contains(b.UID(BlockSize-1)))
		require.False(t, b.Contains(b.UID(BlockSize)))
		require.False(t, b.Contains(int(b)-1))
		require.False(t, b.Contains(0))
	}
	require.NotEqual(t, NewBlock(0), NewBlock(1))
	for _, b := range []Block{0, 1000, First + 1, First - BlockSize, Block(First + Blocks*BlockSize)} {
		require.False(t, b.Valid(), "%d", b)
	}
}

func TestKillEndsAllOfOneUID(t *testing.T) {
	t.Parallel()
	uid, other := testBlock.UID(1), testBlock.UID(2)
	// One that forks, and ignores what can be ignored.
	_, tree := spawn(t, uid, "/bin/sh", "-c", "trap '' TERM INT HUP; sleep 60 & sleep 60 & wait")
	_, second := spawn(t, uid, "/bin/sleep", "60")
	spared, _ := spawn(t, other, "/bin/sleep", "60")
	running, err := testBlock.Running()
	require.NoError(t, err)
	require.True(t, running[uid] && running[other])
	require.NoError(t, Kill(t.Context(), uid))
	<-tree
	<-second
	running, err = testBlock.Running()
	require.NoError(t, err)
	require.False(t, running[uid])
	require.NoError(t, spared.Process.Signal(syscall.Signal(0)))
	require.NoError(t, Kill(t.Context(), uid), "nothing is left: done")
}

func TestKillWithoutUIDDoesNothing(t *testing.T) {
	t.Parallel()
	require.NoError(t, Kill(t.Context(), 0))
}

// A process that hides is ended all the same.
func TestKillFindsWhatHides(t *testing.T) {
	t.Parallel()
	uid := testBlock.UID(3)
	cmd := exec.Command(self(t))
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	said := make([]byte, 5)
	_, err = out.Read(said)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		raw, _ := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
		return strings.Contains(string(raw), "State:\tZ")
	}, 5*time.Second, time.Millisecond, "it looks dead")
	running, err := testBlock.Running()
	require.NoError(t, err)
	require.True(t, running[uid])
	require.NoError(t, Kill(t.Context(), uid))
	require.ErrorContains(t, cmd.Wait(), "killed")
}

// self is this test binary where an ordinary user can execute it.
func self(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	dir, err := os.MkdirTemp("/tmp", "uids-test-") //nolint:usetesting // another uid must get through to it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.WriteFile(dir+"/self", raw, 0o755))
	return dir + "/self"
}

// What nobody has reaped yet is dead, and is not waited for.
func TestZombiesAreNotAlive(t *testing.T) {
	t.Parallel()
	uid := testBlock.UID(4)
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Wait() })
	var info unix.Siginfo
	require.NoError(t, unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil))
	owner, alive := ownerOf(cmd.Process.Pid)
	require.Equal(t, uid, owner)
	require.False(t, alive)
	require.NoError(t, Kill(t.Context(), uid))
}

// The pid in hand belongs to another process by the time of the kill: it is spared.
func TestRecycledPIDIsSpared(t *testing.T) {
	t.Parallel()
	other, _ := spawn(t, testBlock.UID(5), "/bin/sleep", "60")
	kill(other.Process.Pid, testBlock.UID(6))
	kill(1<<22+1, testBlock.UID(6)) // none has it
	require.NoError(t, other.Process.Signal(syscall.Signal(0)))
	_, alive := ownerOf(other.Process.Pid)
	require.True(t, alive)
	owner, alive := ownerOf(os.Getpid())
	require.True(t, alive)
	require.Equal(t, os.Getuid(), owner)
}

// A process that is not dead in time is said to be there.
func TestKillIsBounded(t *testing.T) {
	t.Parallel()
	uid := testBlock.UID(7)
	_, ended := spawn(t, uid, "/bin/sleep", "60")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Kill(ctx, uid); err != nil {
		require.Equal(t, fault.DeadlineExceeded, fault.KindOf(err))
		require.ErrorContains(t, err, "still alive")
	}
	<-ended // killed it is, even so
}

// TestProcesses: what runs in a block, one by one, and nothing of its neighbours.
func TestProcesses(t *testing.T) {
	t.Parallel()
	const block = testBlock - 10*BlockSize
	one, _ := spawn(t, block.UID(1), "/bin/sleep", "60")
	two, _ := spawn(t, block.UID(1), "/bin/sleep", "60")
	spawn(t, int(block)-1, "/bin/sleep", "60")
	spawn(t, int(block)+BlockSize, "/bin/sleep", "60")
	found, err := block.Processes()
	require.NoError(t, err)
	require.ElementsMatch(t, []Process{
		{PID: one.Process.Pid, UID: block.UID(1), Command: "sleep"}, {PID: two.Process.Pid, UID: block.UID(1), Command: "sleep"},
	}, found)
}
