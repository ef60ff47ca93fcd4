package vmmtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

func (s *suite) testKill(t *testing.T) {
	m := s.newMachine(t)
	vm := s.boot(t, m)
	pid := vm.Handle().PID
	require.NoError(t, vm.Kill(t.Context()))
	requireGone(t, pid)
	requireNoSockets(t, m.cfg.Dir)
	require.NoError(t, vm.Kill(t.Context()), "kill is idempotent")
	<-vm.Exited()
	require.True(t, vm.Exit().Requested)
	err := vm.Pause(t.Context())
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)

	m2 := s.newMachine(t)
	paused := s.boot(t, m2)
	require.NoError(t, paused.Pause(t.Context()))
	require.NoError(t, paused.Kill(t.Context()), "kill is legal in every state")
}

// exitTime is how soon a crash must be known: at once, on a machine that has other things to do.
const exitTime = 20 * time.Second

func (s *suite) testExit(t *testing.T) {
	m := s.newMachine(t)
	vm := s.boot(t, m)
	m.reach(t)
	require.NoError(t, unix.Kill(vm.Handle().PID, unix.SIGKILL))
	awaitExit(t, vm)
	exit := vm.Exit()
	require.Contains(t, exit.Reason, "killed by signal 9")
	require.Equal(t, -1, exit.Code)
	require.False(t, exit.Requested)
	require.WithinDuration(t, time.Now(), exit.At, exitTime)
	requireNoSockets(t, m.cfg.Dir)
}

// testStopped: a VMM that a signal holds says so, a paused one does not, and it can be ended.
func (s *suite) testStopped(t *testing.T) {
	m := s.newMachine(t)
	vm := s.boot(t, m)
	m.reach(t)
	require.Empty(t, vm.Stopped())
	pid := vm.Handle().PID
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	require.Eventually(t, func() bool { return vm.Stopped() != "" }, answerTime, tick)
	require.Contains(t, vm.Stopped(), "stopped by a signal")
	require.NoError(t, unix.Kill(pid, unix.SIGCONT))
	require.Eventually(t, func() bool { return vm.Stopped() == "" }, answerTime, tick)
	m.reach(t)
	require.NoError(t, vm.Pause(t.Context()))
	require.Empty(t, vm.Stopped(), "paused is not stopped")
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	require.Eventually(t, func() bool { return vm.Stopped() != "" }, answerTime, tick)
	require.NoError(t, vm.Kill(t.Context()), "a stopped one can be killed")
	require.Empty(t, vm.Stopped(), "gone is not stopped")
}

func awaitExit(t testing.TB, vm vmm.VM) {
	t.Helper()
	select {
	case <-vm.Exited():
	case <-time.After(exitTime):
		require.Fail(t, "the VM's end was not seen in time")
	}
}

// testGuestEnds: the reason tells what the guest did.
func (s *suite) testGuestEnds(t *testing.T) {
	tpl := s.newTemplate(t, func(*guest) {})
	for _, c := range []struct{ command, reason string }{
		{"panic", "guest panicked: sysrq triggered crash"},
		{"poweroff", "guest shut down"},
		{"reboot", "guest rebooted"},
	} {
		vm, g := s.restore(t, tpl, s.copyOf(t, tpl, diskMB))
		g.tell(t, c.command)
		select {
		case <-vm.Exited():
		case <-time.After(answerTime):
			require.Fail(t, "the VMM did not end", c.command)
		}
		require.Equal(t, c.reason, vm.Exit().Reason)
		require.False(t, vm.Exit().Requested)
	}
}

func (s *suite) testDetach(t *testing.T) {
	m := s.newMachine(t)
	vm := s.boot(t, m)
	m.reach(t).ask(t, "poke who kept")
	h := vm.Handle()
	vm.Detach()
	vm.Detach()
	require.True(t, fault.Is(vm.Pause(t.Context()), fault.FailedPrecondition))
	// Nobody reads the console now; the guest prints on.
	require.Equal(t, "ok", m.reach(t).ask(t, "print 200 "+strings.Repeat("y", 1000)))

	again, err := s.driver(t).Adopt(t.Context(), h)
	require.NoError(t, err)
	killAtEnd(t, again)
	require.Equal(t, h, again.Handle())
	g := m.reach(t)
	require.Equal(t, "kept", g.ask(t, "peek who"))
	require.NoError(t, again.Pause(t.Context()))
	saveState(t, again)
	require.NoError(t, again.Resume(t.Context()))
	g = m.reach(t)
	require.Equal(t, "ok", g.ask(t, "print 1 after-adoption"))
	require.Eventually(t, func() bool {
		text, err := again.Console()
		return err == nil && strings.Contains(string(text), "after-adoption 0")
	}, answerTime, tick)
	if !s.caps.OwnMemory {
		file, err := again.MemoryFile()
		require.NoError(t, err)
		require.NoError(t, file.Close())
	}
	require.NoError(t, again.Kill(t.Context()))
	_, err = s.driver(t).Adopt(t.Context(), h)
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

func (s *suite) testAdoptRefused(t *testing.T) {
	m := s.newMachine(t)
	vm := s.boot(t, m)
	good := vm.Handle()
	changes := map[string]func(*vmm.Handle){
		"another process":  func(h *vmm.Handle) { h.StartTime++ },
		"before a reboot":  func(h *vmm.Handle) { h.BootID = "another" },
		"another user's":   func(h *vmm.Handle) { h.UID++ },
		"no such process":  func(h *vmm.Handle) { h.PID = 1 << 30 },
		"the test's own":   func(h *vmm.Handle) { h.PID = os.Getpid() },
		"no pid in handle": func(h *vmm.Handle) { h.PID = 0 },
	}
	if !s.caps.OwnMemory {
		changes["another memory"] = func(h *vmm.Handle) { h.MemoryIno++ }
	}
	for name, change := range changes {
		h := good
		change(&h)
		_, err := s.driver(t).Adopt(t.Context(), h)
		require.True(t, fault.Is(err, fault.NotFound), "%s: %v", name, err)
	}
	m.reach(t)
	require.NoError(t, vm.Pause(t.Context()), "refusals do not touch the VM")
}

const tick = 20 * time.Millisecond

func requireGone(t testing.TB, pid int) {
	t.Helper()
	require.Positive(t, pid)
	_, err := os.Stat(filepath.Dir(memPath(pid)))
	require.ErrorIs(t, err, os.ErrNotExist, "process %d is still there", pid)
}

// requireNothing: no process of the machine's uid is there, and no socket.
func requireNothing(t testing.TB, m *machine) {
	t.Helper()
	require.Empty(t, ofUID(t, m.cfg.UID))
	requireNoSockets(t, m.cfg.Dir)
}

// ofUID lists the processes of a uid.
func ofUID(t testing.TB, uid int) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	var out []string
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) == uid {
			out = append(out, dir)
		}
	}
	return out
}

// requireNoSockets: nor one further down, in a jail.
func requireNoSockets(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&os.ModeSocket != 0 {
			require.Fail(t, "a socket stays", path)
		}
		return err
	}))
}
