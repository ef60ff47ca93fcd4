package process

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const testUID = 64999

func start(t *testing.T, script string) *Process {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	p, err := Start(Spec{
		Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"A=1"}, MaxFiles: 64,
		Files: []*os.File{null, null, null}, UID: testUID, GID: testUID,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Kill(t.Context()) })
	return p
}

func await(t *testing.T, p *Process) Status {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		require.Fail(t, "the process does not end")
	}
	return p.Status()
}

func TestStartConfines(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 1000")
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	require.NoError(t, err)
	require.Contains(t, string(raw), fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", testUID))
	require.Contains(t, string(raw), "CapEff:\t0000000000000000\n")
	uid, err := p.UID()
	require.NoError(t, err)
	require.Equal(t, testUID, uid)
	sid, err := unix.Getsid(p.PID)
	require.NoError(t, err)
	require.Equal(t, p.PID, sid)
	require.Eventually(t, func() bool { // empty while the shell becomes sleep
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
		return err == nil && strings.HasPrefix(string(env), "A=1")
	}, 5*time.Second, time.Millisecond)
	require.NoError(t, p.Kill(t.Context()))
	require.NoError(t, p.Kill(t.Context()), "kill is idempotent")
	require.Equal(t, unix.SIGKILL, p.Status().Signal)
}

func TestStatus(t *testing.T) {
	t.Parallel()
	s := await(t, start(t, "exit 7"))
	require.True(t, s.Known)
	require.Equal(t, 7, s.Code)
	require.Equal(t, "exit status 7", s.String())
	s = await(t, start(t, "kill -TERM $$"))
	require.Equal(t, unix.SIGTERM, s.Signal)
	require.Equal(t, "killed by signal 15", s.String())
	require.WithinDuration(t, time.Now(), s.At, 10*time.Second)
}

func TestStartRefused(t *testing.T) {
	t.Parallel()
	_, err := Start(Spec{Path: "/nonexistent", UID: testUID, GID: testUID})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestOpenStranger watches a process that is a grandchild: nobody here reaps it.
func TestOpenStranger(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	require.NoError(t, err)
	var pid int
	_, err = fmt.Sscan(string(out), &pid)
	require.NoError(t, err)
	st, err := readStat(pid)
	require.NoError(t, err)

	_, err = Open(pid, st.startTime+1)
	require.True(t, fault.Is(err, fault.NotFound), "a recycled pid: %v", err)
	p, err := Open(pid, st.startTime)
	require.NoError(t, err)
	require.NoError(t, p.Kill(t.Context()))
	s := p.Status()
	if s.Known { // from Linux 6.15 on, if its parent reaps
		require.Equal(t, unix.SIGKILL, s.Signal)
	}
	_, err = Open(pid, st.startTime)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

func TestOpenWhoeverHasThePid(t *testing.T) {
	t.Parallel()
	_, err := Open(os.Getpid(), 1)
	require.True(t, fault.Is(err, fault.NotFound))
	p, err := Open(os.Getpid(), 0)
	require.NoError(t, err)
	p.Release()
	select {
	case <-p.Done():
		require.Fail(t, "a released process does not end")
	case <-time.After(time.Millisecond):
	}
}

// TestStatusOfAZombie: the status is known before the parent, which is not us, has reaped.
func TestStatusOfAZombie(t *testing.T) {
	t.Parallel()
	parent := exec.Command("/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!; exec sleep 1000")
	out, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	defer func() { _, _ = parent.Process.Kill(), parent.Wait() }()
	var pid int
	_, err = fmt.Fscan(out, &pid)
	require.NoError(t, err)
	p, err := Open(pid, 0)
	require.NoError(t, err)
	require.NoError(t, p.Kill(t.Context()))
	require.True(t, p.Status().Known)
	require.Equal(t, unix.SIGKILL, p.Status().Signal)
}

func TestReleaseLeavesItAlive(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 1000")
	again, err := Open(p.PID, p.StartTime)
	require.NoError(t, err)
	p.Release()
	p.Release()
	require.NoError(t, unix.Kill(p.PID, 0))
	select {
	case <-p.Done():
		require.Fail(t, "a released process is reported as gone")
	default:
	}
	require.Error(t, p.Kill(t.Context()))
	require.NoError(t, again.Kill(t.Context()))
	require.Equal(t, unix.SIGKILL, again.Status().Signal, "a child is reaped by whoever watches it")
}

func TestTakeFD(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 1000")
	f, err := p.TakeFD(1)
	require.NoError(t, err)
	defer f.Close()
	got, err := f.Stat()
	require.NoError(t, err)
	null, err := os.Stat(os.DevNull)
	require.NoError(t, err)
	require.True(t, os.SameFile(null, got))
	_, err = p.TakeFD(77)
	require.Error(t, err)
}

func TestStopped(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 1000")
	require.Empty(t, p.Stopped())
	require.NoError(t, unix.Kill(p.PID, unix.SIGSTOP))
	require.Eventually(t, func() bool { return p.Stopped() != "" }, time.Minute, time.Millisecond)
	require.Equal(t, "its process was stopped by a signal", p.Stopped())
	require.NoError(t, unix.Kill(p.PID, unix.SIGCONT))
	require.Eventually(t, func() bool { return p.Stopped() == "" }, time.Minute, time.Millisecond)
	require.NoError(t, p.Kill(t.Context()))
	require.Empty(t, p.Stopped(), "one that has ended is not stopped")
}

// TestStoppedByADebugger holds it with ptrace from a thread of its own.
func TestStoppedByADebugger(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 1000")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.PtraceSeize(p.PID))
	require.NoError(t, unix.PtraceInterrupt(p.PID))
	require.Eventually(t, func() bool { return p.Stopped() != "" }, time.Minute, time.Millisecond)
	require.Equal(t, "its process is held by a debugger", p.Stopped())
	require.NoError(t, unix.PtraceDetach(p.PID))
	require.Eventually(t, func() bool { return p.Stopped() == "" }, time.Minute, time.Millisecond)
}
