package vmmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

// testDiskPersists: what the guest flushed is in the host's file, even when the VMM is killed.
func (s *suite) testDiskPersists(t *testing.T) {
	m := s.newMachine(t)
	base := m.cfg.Drive[0].Path
	m.cfg.Drive = s.overlay(t, m.cfg.Drive, 2*diskMB)
	vm := s.boot(t, m)
	g := m.reach(t)
	require.Equal(t, strconv.Itoa(2*diskMB<<20), g.ask(t, "size"), "a top may be larger than its base")
	g.ask(t, "write 3 flushed")
	last := int64(2*diskMB<<20)/4096 - 1
	g.ask(t, fmt.Sprintf("write %d beyond-the-base", last))
	require.NoError(t, vm.Kill(t.Context()))

	raw := flatten(t, m.cfg.Drive)
	require.Equal(t, "flushed", blockOf(t, raw, 3))
	require.Equal(t, "beyond-the-base", blockOf(t, raw, last))
	require.Empty(t, blockOf(t, base, 3), "a read-only node was written")
}

// flatten reads a drive of raw base and qcow2 layers, by no driver's code. A drive of one node is
// what it is.
func flatten(t testing.TB, drive []vmm.Node) string {
	t.Helper()
	if len(drive) == 1 {
		return drive[0].Path
	}
	spec := fmt.Sprintf(`{"driver":"raw","file":{"driver":"file","filename":%q}}`, drive[0].Path)
	for _, n := range drive[1:] {
		spec = fmt.Sprintf(`{"driver":"qcow2","file":{"driver":"file","filename":%q},"backing":%s}`, n.Path, spec)
	}
	out := filepath.Join(t.TempDir(), "flat.raw")
	text, err := exec.Command("qemu-img", "convert", "-U", "-O", "raw", "json:"+spec, out).CombinedOutput()
	require.NoError(t, err, string(text))
	return out
}

func blockOf(t testing.TB, path string, index int64) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 4096)
	_, err = f.ReadAt(b, index*4096)
	require.NoError(t, err)
	n := 0
	for n < len(b) && b[n] != 0 {
		n++
	}
	return string(b[:n])
}

// testDiskGrows: a guest restored onto a larger disk sees it when told.
func (s *suite) testDiskGrows(t *testing.T) {
	tpl := s.newTemplate(t, func(g *guest) {
		require.Equal(t, strconv.Itoa(diskMB<<20), g.ask(t, "size"))
	})
	m := s.copyOf(t, tpl, 4*diskMB)
	vm, g := s.restore(t, tpl, m)
	require.NoError(t, vm.GrowDisk(t.Context(), 4*diskMB<<20))
	require.Eventually(t, func() bool { return g.ask(t, "size") == strconv.Itoa(4*diskMB<<20) }, answerTime, tick)
	last := int64(4*diskMB<<20)/4096 - 1
	g.ask(t, fmt.Sprintf("write %d grown", last))
	require.Equal(t, "grown", g.ask(t, fmt.Sprintf("read %d", last)))
	require.Error(t, vm.GrowDisk(t.Context(), -1))
}

// testSwitch seals the disk under a guest that writes all the time, twice.
func (s *suite) testSwitch(t *testing.T) {
	if !s.caps.LiveDiskSwitch {
		t.Skip("the driver cannot switch disks of a running VM")
	}
	m := s.newMachine(t)
	m.cfg.Drive = s.overlay(t, m.cfg.Drive, diskMB)
	vm := s.boot(t, m)
	g := m.reach(t)
	const first = 100
	g.ask(t, "hammer "+strconv.Itoa(first))
	drive := m.cfg.Drive
	for range 2 {
		awaitWrites(t, g, 30)
		before := writtenBy(t, g)
		sealed := drive
		next := s.overlay(t, drive, diskMB)
		require.NoError(t, vm.SwitchDisk(t.Context(), next))
		drive = next
		// All that was flushed before the switch is in the sealed drive.
		flat := flatten(t, sealed)
		for n := int64(1); n <= before; n++ {
			require.Equal(t, fmt.Sprintf("n%d", n), blockOf(t, flat, first+n))
		}
		hash := fileHash(t, sealed[len(sealed)-1].Path)
		awaitWrites(t, g, 30)
		require.Equal(t, hash, fileHash(t, sealed[len(sealed)-1].Path), "a sealed layer was written")
		require.Zero(t, writableFDs(t, vm.Handle().PID, sealed[len(sealed)-1].Path), "the VMM can still write to a sealed layer")
	}
	require.NoError(t, vm.Kill(t.Context()))
}

// testSwitchPaused seals the disk of a VM that is paused within its writes, as a snapshot does,
// twice; what the guest believes to be written is.
func (s *suite) testSwitchPaused(t *testing.T) {
	m := s.newMachine(t)
	m.cfg.Drive = s.overlay(t, m.cfg.Drive, diskMB)
	vm := s.boot(t, m)
	g := m.reach(t)
	const first = 100
	g.ask(t, "hammer "+strconv.Itoa(first))
	drive := m.cfg.Drive
	if !s.caps.LiveDiskSwitch {
		err := vm.SwitchDisk(t.Context(), s.overlay(t, drive, diskMB))
		require.True(t, fault.Is(err, fault.FailedPrecondition), "it runs: %v", err)
	}
	for range 2 {
		awaitWrites(t, g, 5)
		drive = s.switchPaused(t, vm, drive)
	}
	awaitWrites(t, g, 5)
	total := writtenBy(t, g)
	require.NoError(t, vm.Kill(t.Context()))
	flat := flatten(t, drive)
	for n := int64(1); n <= total; n++ {
		require.Equal(t, fmt.Sprintf("n%d", n), blockOf(t, flat, first+n))
	}
}

func (s *suite) switchPaused(t testing.TB, vm vmm.VM, drive []vmm.Node) []vmm.Node {
	t.Helper()
	require.NoError(t, vm.Pause(t.Context()))
	next := s.overlay(t, drive, diskMB)
	sealed := drive[len(drive)-1].Path
	require.NoError(t, vm.SwitchDisk(t.Context(), next))
	hash := fileHash(t, sealed)
	require.NoError(t, vm.Resume(t.Context()))
	require.Zero(t, writableFDs(t, vm.Handle().PID, sealed))
	require.Equal(t, hash, fileHash(t, sealed))
	return next
}

func writtenBy(t testing.TB, g *guest) int64 {
	t.Helper()
	n, err := strconv.ParseInt(g.ask(t, "written"), 10, 64)
	require.NoError(t, err)
	return n
}

func awaitWrites(t testing.TB, g *guest, more int64) {
	t.Helper()
	from := writtenBy(t, g)
	require.Eventually(t, func() bool { return writtenBy(t, g) >= from+more }, answerTime, tick)
}

// testSwitchRefused: a switch that cannot be leaves the VM writing where it wrote.
func (s *suite) testSwitchRefused(t *testing.T) {
	m := s.newMachine(t)
	m.cfg.Drive = s.overlay(t, m.cfg.Drive, diskMB)
	vm := s.boot(t, m)
	g := m.reach(t)
	if s.caps.BlockDrive {
		s.nodeRefused(t, m, vm, g)
		return
	}
	next := s.overlay(t, m.cfg.Drive, diskMB)

	broken := append([]vmm.Node(nil), next...)
	broken[2].Path = filepath.Join(t.TempDir(), "missing")
	require.Error(t, vm.SwitchDisk(t.Context(), broken))

	garbage := filepath.Join(t.TempDir(), "garbage")
	require.NoError(t, os.WriteFile(garbage, make([]byte, 1<<20), 0o600))
	broken[2].Path = garbage
	require.Error(t, vm.SwitchDisk(t.Context(), broken))

	stranger := append([]vmm.Node(nil), next...)
	stranger[1] = s.overlay(t, m.cfg.Drive[:1], diskMB)[1]
	stranger[1].ReadOnly = true
	err := vm.SwitchDisk(t.Context(), stranger)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "the drive is not the VM's: %v", err)

	g.ask(t, "write 5 still-here")
	require.Equal(t, "still-here", blockOf(t, flatten(t, m.cfg.Drive), 5))
	require.NoError(t, vm.SwitchDisk(t.Context(), next), "and a right one works afterwards")
	g.ask(t, "write 6 on-top")
	require.Empty(t, blockOf(t, flatten(t, m.cfg.Drive), 6))
	require.Equal(t, "on-top", blockOf(t, flatten(t, next), 6))
}

// nodeRefused is testSwitchRefused where a drive is one node.
func (s *suite) nodeRefused(t testing.TB, m *machine, vm vmm.VM, g *guest) {
	t.Helper()
	require.NoError(t, vm.Pause(t.Context()))
	next := s.overlay(t, m.cfg.Drive, diskMB)
	for name, drive := range map[string][]vmm.Node{
		"missing": {{Path: filepath.Join(t.TempDir(), "missing"), Format: "raw"}},
		"none":    {}, "a chain": {{Path: top(m.cfg.Drive), Format: "raw", ReadOnly: true}, next[0]},
		"read-only": {{Path: next[0].Path, Format: "raw", ReadOnly: true}}, "format": {{Path: next[0].Path, Format: "qcow2"}},
	} {
		require.Error(t, vm.SwitchDisk(t.Context(), drive), name)
	}
	require.NoError(t, vm.Resume(t.Context()))
	g.ask(t, "write 5 still-here")
	require.Equal(t, "still-here", blockOf(t, top(m.cfg.Drive), 5))
	require.NoError(t, vm.Pause(t.Context()))
	next = s.overlay(t, m.cfg.Drive, diskMB)
	require.NoError(t, vm.SwitchDisk(t.Context(), next), "and a right one works afterwards")
	require.NoError(t, vm.Resume(t.Context()))
	g.ask(t, "write 6 on-top")
	require.Empty(t, blockOf(t, top(m.cfg.Drive), 6))
	require.Equal(t, "on-top", blockOf(t, top(next), 6))
	require.Equal(t, "still-here", blockOf(t, top(next), 5))
}
