package vmmtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

const memoryBytes = memoryMB << 20

// memoryFile is a new file of a VM's memory: what the guest wrote over what it was started from,
// which is nothing ("") for one that was booted. It is root's, and may be read by anybody who gets at it.
func memoryFile(t testing.TB, vm vmm.VM, from string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(memoryBytes))
	if from != "" {
		base, err := os.Open(from)
		require.NoError(t, err)
		defer base.Close()
		copyData(t, f, base)
	}
	dirty := openDirty(t, vm)
	defer dirty.Close()
	copyData(t, f, dirty)
	return path
}

func openDirty(t testing.TB, vm vmm.VM) *os.File {
	t.Helper()
	f, err := vm.Dirty(t.Context())
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(memoryBytes), info.Size())
	return f
}

// extent is a run of data in a sparse file.
type extent struct{ at, bytes int64 }

// dataOf lists the data of a sparse file.
func dataOf(t testing.TB, f *os.File) []extent {
	t.Helper()
	var out []extent
	for at := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return out
		}
		require.NoError(t, err)
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		require.NoError(t, err)
		out = append(out, extent{data, hole - data})
		at = hole
	}
}

// copyData copies the data of a sparse file over another one, zeros too.
func copyData(t testing.TB, to, from *os.File) {
	t.Helper()
	for _, e := range dataOf(t, from) {
		_, err := io.Copy(io.NewOffsetWriter(to, e.at), io.NewSectionReader(from, e.at, e.bytes))
		require.NoError(t, err)
	}
}

func bytesIn(list []extent) (n int64) {
	for _, e := range list {
		n += e.bytes
	}
	return n
}

// testDirty: what the guest wrote since it was started is all there after a SaveState, whatever
// was saved before, and over what it was started from it is the memory; little else is.
func (s *suite) testDirty(t *testing.T) {
	if !s.caps.OwnMemory {
		vm := s.boot(t, s.newMachine(t))
		_, err := vm.Dirty(t.Context())
		require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
		return
	}
	tpl := s.newTemplate(t, func(g *guest) { g.ask(t, "mark 8 template") })
	m := s.copyOf(t, tpl, diskMB)
	vm, g := s.restore(t, tpl, m)
	g.ask(t, "mark 4 first")
	_ = g.conn.Close()
	first := s.saved(t, vm, tpl.machine.cfg.Memory.Path)
	require.Less(t, bytesIn(first.dirty), int64(memoryBytes/2), "most of the memory was not written")

	require.NoError(t, vm.Resume(t.Context()))
	g = m.reach(t)
	g.ask(t, "mark 2 second")
	_ = g.conn.Close()
	second := s.saved(t, vm, tpl.machine.cfg.Memory.Path)
	require.True(t, covers(second.dirty, first.dirty), "what was saved before is written still")

	s.checkMarks(t, tpl, first, map[string]string{"template": "8", "first": "4", "second": "0"})
	s.checkMarks(t, tpl, second, map[string]string{"template": "8", "first": "4", "second": "2"})
	s.adoptedDirty(t, m, vm, second)
}

// savedVM is what was saved of a paused VM.
type savedVM struct {
	state  *os.File
	memory string
	dirty  []extent
}

// saved pauses a VM and saves it.
func (s *suite) saved(t testing.TB, vm vmm.VM, from string) savedVM {
	t.Helper()
	require.NoError(t, vm.Pause(t.Context()))
	out := savedVM{state: saveState(t, vm), memory: memoryFile(t, vm, from)}
	f := openDirty(t, vm)
	defer f.Close()
	out.dirty = dataOf(t, f)
	return out
}

// checkMarks restores what was saved and looks for all that its guest wrote: in every page of its
// memory, since the guest adds up what it finds.
func (s *suite) checkMarks(t testing.TB, tpl *template, c savedVM, want map[string]string) {
	t.Helper()
	m := s.copyOf(t, tpl, diskMB)
	m.cfg.Memory.Path = c.memory
	vm, g := s.restore(t, &template{machine: tpl.machine, state: c.state}, m)
	for text, mb := range want {
		require.Equal(t, mb, g.ask(t, "marked "+text), text)
	}
	require.NoError(t, vm.Kill(t.Context()))
}

// covers tells whether all of some is in data.
func covers(data, some []extent) bool {
	for _, e := range some {
		for e.bytes > 0 {
			n := inFirst(data, e)
			if n == 0 {
				return false
			}
			e = extent{e.at + n, e.bytes - n}
		}
	}
	return true
}

// inFirst is how many bytes from the begin of e on lie in the run that has that.
func inFirst(data []extent, e extent) int64 {
	for _, d := range data {
		if d.at <= e.at && e.at < d.at+d.bytes {
			return min(e.bytes, d.at+d.bytes-e.at)
		}
	}
	return 0
}

// adoptedDirty: it survives the agent.
func (s *suite) adoptedDirty(t testing.TB, m *machine, vm vmm.VM, want savedVM) {
	t.Helper()
	h := vm.Handle()
	vm.Detach()
	again, err := s.driver(t).Adopt(t.Context(), h)
	require.NoError(t, err)
	killAtEnd(t, again)
	f := openDirty(t, again)
	require.Equal(t, want.dirty, dataOf(t, f))
	require.NoError(t, f.Close())
	require.NoError(t, again.Resume(t.Context()))
	g := m.reach(t)
	g.ask(t, "mark 1 adopted")
	_ = g.conn.Close()
	third := s.saved(t, again, "")
	require.True(t, covers(third.dirty, want.dirty))
	require.True(t, holds(t, third.memory, "adopted"), "the new pages are there")
	require.NoError(t, again.Kill(t.Context()))
}

// holds tells whether a memory file has a page that a guest marked with text.
func holds(t testing.TB, path, text string) bool {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	page := make([]byte, 4096)
	want := []byte(strings.Repeat(text+" ", 20))
	for _, e := range dataOf(t, f) {
		for at := e.at; at < e.at+e.bytes; at += int64(len(page)) {
			_, err := f.ReadAt(page, at)
			require.NoError(t, err)
			if string(page[:len(want)]) == string(want) {
				return true
			}
		}
	}
	return false
}

// checkOwnMemory: the VMM has the template's memory mapped, and nobody under its uid can write it.
func checkOwnMemory(t testing.TB, pid int, path string, uid int) {
	t.Helper()
	require.Zero(t, writableFDs(t, pid, path), "the VMM can write to the template's memory")
	before := fileHash(t, path)
	out, err := asUID(uid, "dd", "if=/dev/urandom", "of="+path, "bs=4096", "count=1", "conv=notrunc").CombinedOutput()
	require.Error(t, err, "the VM's uid wrote to the template: %s", out)
	require.Equal(t, before, fileHash(t, path))
	require.NoError(t, checkMapsPrivate(pid, path))
}

// checkMapsPrivate: every mapping of the file in the VMM is private.
func checkMapsPrivate(pid int, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	found := false
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != inodeOf(info) {
			continue
		}
		found = true
		if strings.HasSuffix(f[1], "s") {
			return fmt.Errorf("a shared mapping of the template's memory: %s", line)
		}
	}
	if !found {
		return fmt.Errorf("%s is not mapped", path)
	}
	return nil
}
