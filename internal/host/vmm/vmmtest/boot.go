package vmmtest

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
)

// testBoot boots with both cores of the host busy: a translated guest that cannot calibrate
// its clock hangs then.
func (s *suite) testBoot(t *testing.T) {
	spin(t, 2)
	m := s.newMachine(t)
	m.cfg.VCPUs = 2
	m.cfg.Cmdline = "vmmtest.addr=" + guestAddr // not quiet: the console is looked at
	began := time.Now()
	vm := s.boot(t, m)
	t.Logf("boot returned after %d ms", time.Since(began).Milliseconds())
	g := m.reach(t)
	require.Equal(t, "pong", g.ask(t, "ping"))
	t.Logf("guest answered after %d ms, both cores busy", time.Since(began).Milliseconds())

	require.Equal(t, "0-1", g.ask(t, "show /sys/devices/system/cpu/online"))
	require.Contains(t, g.ask(t, "show /proc/cmdline"), m.cfg.Cmdline)
	require.NotEmpty(t, g.ask(t, "show /sys/class/misc/hw_random/rng_available"))
	console, err := vm.Console()
	require.NoError(t, err)
	require.Contains(t, string(console), "Linux version")

	s.checkHandle(t, vm, m)
	checkClock(t, g)
}

// spin keeps n threads busy until the test ends.
func spin(t testing.TB, n int) {
	var stop atomic.Bool
	var spinning sync.WaitGroup
	for range n {
		spinning.Go(func() {
			for !stop.Load() {
			}
		})
	}
	t.Cleanup(func() {
		stop.Store(true)
		spinning.Wait()
	})
}

func (s *suite) checkHandle(t testing.TB, vm vmm.VM, m *machine) {
	t.Helper()
	h := vm.Handle()
	require.Positive(t, h.PID)
	require.Positive(t, h.StartTime)
	require.NotEmpty(t, h.BootID)
	require.Equal(t, m.cfg.UID, h.UID)
	require.Equal(t, m.cfg.MemoryMB, h.MemoryMB)
	require.True(t, strings.HasPrefix(h.Socket, m.cfg.Dir))
	mapping, err := vm.Mapping()
	require.NoError(t, err)
	require.Equal(t, h.PID, mapping.PID)
	if s.caps.OwnMemory {
		require.Positive(t, mapping.Bytes)
		require.LessOrEqual(t, mapping.Bytes, int64(m.cfg.MemoryMB)<<20)
		return
	}
	require.Equal(t, int64(m.cfg.MemoryMB)<<20, mapping.Bytes)
}

// checkClock: the guest's clock runs at the host's rate.
func checkClock(t testing.TB, g *guest) {
	t.Helper()
	t.Logf("clock source: %s", g.ask(t, "show /sys/devices/system/clocksource/clocksource0/current_clocksource"))
	hostBegan, guestBegan := time.Now(), guestClock(t, g)
	g.ask(t, "sleep 2000")
	guestTook, hostTook := guestClock(t, g)-guestBegan, time.Since(hostBegan)
	require.InEpsilon(t, hostTook.Seconds(), guestTook.Seconds(), 0.05)
}

func guestClock(t testing.TB, g *guest) time.Duration {
	t.Helper()
	n, err := strconv.ParseInt(g.ask(t, "clock"), 10, 64)
	require.NoError(t, err)
	return time.Duration(n)
}

func (s *suite) testPauseResume(t *testing.T) {
	m := s.newMachine(t)
	vm := s.boot(t, m)
	g := m.reach(t)
	require.NoError(t, vm.Pause(t.Context()))
	require.NoError(t, vm.Pause(t.Context()), "pause is idempotent")
	require.True(t, g.silent(t, "ping", 300*time.Millisecond), "a paused guest answers")
	require.NoError(t, vm.Resume(t.Context()))
	require.NoError(t, vm.Resume(t.Context()), "resume is idempotent")
	require.Equal(t, "pong", g.answer(t), "the answer comes once it runs")
}

// testConsole: a guest that prints without end is not stopped by it, and keeps 1 MiB.
func (s *suite) testConsole(t *testing.T) {
	m := s.newMachine(t)
	vm := s.boot(t, m)
	g := m.reach(t)
	line := strings.Repeat("x", 1000)
	require.Equal(t, "ok", g.ask(t, "print 700 "+line))
	require.Equal(t, "ok", g.ask(t, "print 1 last-line"))
	require.Eventually(t, func() bool {
		text, err := vm.Console()
		return err == nil && strings.Contains(string(text), "last-line 0")
	}, answerTime, 20*time.Millisecond)
	text, err := vm.Console()
	require.NoError(t, err)
	require.LessOrEqual(t, len(text), 1<<20)
	require.Greater(t, len(text), 400<<10)
	require.NoError(t, vm.Kill(t.Context()))
	kept, err := s.driver(t).ReadConsole(m.cfg.Dir)
	require.NoError(t, err)
	require.Contains(t, string(kept), "last-line 0", "the console outlives its VM")
}
