package vmmtest

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

// template is a VM's memory and state after its guest came up; its disk is read-only by then.
type template struct {
	machine *machine
	state   *os.File
}

// newTemplate boots a guest, lets prepare set it up, and freezes it.
func (s *suite) newTemplate(t testing.TB, prepare func(*guest)) *template {
	t.Helper()
	m := s.newMachine(t)
	vm := s.boot(t, m)
	g := m.reach(t)
	prepare(g)
	_ = g.conn.Close()
	require.NoError(t, vm.Pause(t.Context()))
	state := saveState(t, vm)
	if s.caps.OwnMemory {
		m.cfg.Memory.Path = memoryFile(t, vm, "")
	}
	require.NoError(t, vm.Kill(t.Context()))
	if !s.caps.OwnMemory {
		seal(t, m.cfg.Memory.File)
	}
	return &template{m, state}
}

// hash of the template's memory.
func (tpl *template) hash(t testing.TB) [32]byte {
	t.Helper()
	if path := tpl.machine.cfg.Memory.Path; path != "" {
		return fileHash(t, path)
	}
	return hashOf(t, tpl.machine.cfg.Memory.File)
}

func saveState(t testing.TB, vm vmm.VM) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "state"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	began := time.Now()
	require.NoError(t, vm.SaveState(t.Context(), f))
	info, err := f.Stat()
	require.NoError(t, err)
	require.Positive(t, info.Size())
	t.Logf("state saved in %.1f ms, %d bytes", ms(time.Since(began)), info.Size())
	return f
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// copyOf is a machine that starts from the template: own directory, network, uid and disk.
func (s *suite) copyOf(t testing.TB, tpl *template, sizeMB int) *machine {
	t.Helper()
	m := s.newMachine(t)
	m.cfg.Drive = s.overlay(t, tpl.machine.cfg.Drive, sizeMB)
	m.cfg.Memory = vmm.Memory{File: tpl.machine.cfg.Memory.File, Path: tpl.machine.cfg.Memory.Path}
	return m
}

func (s *suite) restore(t testing.TB, tpl *template, m *machine) (vmm.VM, *guest) {
	t.Helper()
	began := time.Now()
	vm, err := s.driver(t).Restore(t.Context(), m.cfg, tpl.state, nil)
	require.NoError(t, err)
	killAtEnd(t, vm)
	restored := time.Since(began)
	require.NoError(t, vm.Resume(t.Context()))
	g := m.reach(t)
	g.ask(t, "ping")
	t.Logf("restored after %.1f ms, first answer after %.1f ms", ms(restored), ms(time.Since(began)))
	return vm, g
}

func hashOf(t testing.TB, f *os.File) [32]byte {
	t.Helper()
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(f, 0, memoryMB<<20))
	require.NoError(t, err)
	return [32]byte(h.Sum(nil))
}

func (s *suite) testRestoreTwice(t *testing.T) {
	tpl := s.newTemplate(t, func(g *guest) {
		g.ask(t, "poke who template")
		g.ask(t, "write 1 from-template")
	})
	before := tpl.hash(t)

	one, two := s.copyOf(t, tpl, diskMB), s.copyOf(t, tpl, diskMB)
	vm1, g1 := s.restore(t, tpl, one)
	_, g2 := s.restore(t, tpl, two)
	for _, g := range []*guest{g1, g2} {
		require.Equal(t, "template", g.ask(t, "peek who"))
		require.Equal(t, "from-template", g.ask(t, "read 1"))
	}
	g1.ask(t, "poke who one")
	g1.ask(t, "fill 32")
	g2.ask(t, "poke who two")
	g1.ask(t, "write 1 from-one")
	require.Equal(t, "one", g1.ask(t, "peek who"))
	require.Equal(t, "two", g2.ask(t, "peek who"))
	require.Equal(t, "from-one", g1.ask(t, "read 1"))
	require.Equal(t, "from-template", g2.ask(t, "read 1"))
	require.Equal(t, before, tpl.hash(t), "a sandbox changed its template")
	if s.caps.OwnMemory {
		_, err := vm1.MemoryFile()
		require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
		return
	}
	checkMemoryFile(t, vm1, tpl.machine.cfg.Memory.File)
}

// checkMemoryFile: the VMM gives the memfd back, still sealed.
func checkMemoryFile(t testing.TB, vm vmm.VM, want *os.File) {
	t.Helper()
	got, err := vm.MemoryFile()
	require.NoError(t, err)
	defer got.Close()
	a, err := got.Stat()
	require.NoError(t, err)
	b, err := want.Stat()
	require.NoError(t, err)
	require.True(t, os.SameFile(a, b))
	seals, err := unix.FcntlInt(got.Fd(), unix.F_GET_SEALS, 0)
	require.NoError(t, err)
	require.NotZero(t, seals&unix.F_SEAL_WRITE)
}

// testPrepare: what prepare writes into the mapping is the guest's memory afterwards.
func (s *suite) testPrepare(t *testing.T) {
	if s.caps.OwnMemory {
		t.Skip("its memory is prepared by who gives it (Capabilities.OwnMemory)")
	}
	tpl := s.newTemplate(t, func(g *guest) { g.ask(t, "poke who template") })
	m := s.copyOf(t, tpl, diskMB)
	const offset = 0x1000 // below 640 KiB: nothing of Linux lies there
	vm, err := s.driver(t).Restore(t.Context(), m.cfg, tpl.state, func(at vmm.Mapping) error {
		require.Equal(t, int64(memoryMB)<<20, at.Bytes)
		return poke(at, offset, []byte("prepared"))
	})
	require.NoError(t, err)
	killAtEnd(t, vm)
	at, err := vm.Mapping()
	require.NoError(t, err)
	require.Equal(t, "prepared", string(peek(t, at, offset, 8)), "loading the state undid it")
	require.NoError(t, vm.Resume(t.Context()))
	require.Equal(t, "template", m.reach(t).ask(t, "peek who"))
}

func poke(at vmm.Mapping, offset int64, data []byte) error {
	f, err := os.OpenFile(memPath(at.PID), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(data, int64(at.Addr)+offset)
	return err
}

func peek(t testing.TB, at vmm.Mapping, offset, n int64) []byte {
	t.Helper()
	f, err := os.Open(memPath(at.PID))
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, int64(at.Addr)+offset)
	require.NoError(t, err)
	return b
}

// testRestoreFailure: a failed restore leaves nothing, and the next one works.
func (s *suite) testRestoreFailure(t *testing.T) {
	tpl := s.newTemplate(t, func(*guest) {})
	m := s.copyOf(t, tpl, diskMB)
	s.failingPrepare(t, tpl, m)

	broken, err := os.CreateTemp(t.TempDir(), "state")
	require.NoError(t, err)
	defer broken.Close()
	_, err = broken.WriteString("this is no device state")
	require.NoError(t, err)
	_, err = s.driver(t).Restore(t.Context(), m.cfg, broken, nil)
	require.Error(t, err)
	t.Logf("broken state: %v", err)
	requireNothing(t, m)

	s.restore(t, tpl, m)
}

// failingPrepare: a prepare that fails is the restore's failure; to who makes its own memory, what
// goes with a memfd is an error.
func (s *suite) failingPrepare(t testing.TB, tpl *template, m *machine) {
	t.Helper()
	var pid int
	refuse := errors.New("no")
	prepare := func(at vmm.Mapping) error {
		pid = at.PID
		return refuse
	}
	_, err := s.driver(t).Restore(t.Context(), m.cfg, tpl.state, prepare)
	if !s.caps.OwnMemory {
		require.ErrorIs(t, err, refuse)
		requireGone(t, pid)
		requireNothing(t, m)
		return
	}
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	for name, memory := range map[string]vmm.Memory{
		"neither": {}, "both": {Path: m.cfg.Memory.Path, Pager: filepath.Join(m.cfg.Dir, "pager.sock")},
		"a memfd": {File: newMemory(t, memoryMB)}, "shared": {Path: m.cfg.Memory.Path, Shared: true},
	} {
		cfg := m.cfg
		cfg.Memory = memory
		_, err := s.driver(t).Restore(t.Context(), cfg, tpl.state, nil)
		require.True(t, fault.Is(err, fault.Invalid), "%s: %v", name, err)
		requireNothing(t, m)
	}
	cfg := m.cfg
	cfg.Memory.Path = filepath.Join(t.TempDir(), "missing")
	_, err = s.driver(t).Restore(t.Context(), cfg, tpl.state, nil)
	require.Error(t, err)
	requireNothing(t, m)
}
