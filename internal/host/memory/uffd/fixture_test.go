package uffd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/undo"
)

// testUID is nobody's on a test machine.
const testUID = 61907

// saved is a memory on disk, and what it should read as.
type saved struct {
	t    testing.TB
	o    StartOptions // of a VM that is restored from it
	dir  string
	want string
}

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: a page server runs under another uid")
	}
}

// newSaved makes a template of pages, half of it zero, and so many captures over it.
func newSaved(t testing.TB, pages, layers int) *saved {
	t.Helper()
	needsRoot(t)
	s := &saved{t: t, dir: t.TempDir()}
	require.NoError(t, os.Chmod(filepath.Dir(s.dir), 0o711)) // as the folder of jails is
	s.want = filepath.Join(s.dir, "want")
	s.o = StartOptions{Exe: []string{"/proc/self/exe", "pager"}, Dir: filepath.Join(s.dir, "vm"), UID: testUID, GID: testUID, Bytes: int64(pages) * memory.PageSize}
	require.NoError(t, os.Mkdir(s.o.Dir, 0o700))
	want, err := os.Create(s.want)
	require.NoError(t, err)
	t.Cleanup(func() { _ = want.Close() })
	require.NoError(t, want.Truncate(s.o.Bytes))
	r := rand.New(rand.NewPCG(3, 4))
	for n := 0; n < pages; n++ {
		if n/32%2 == 0 {
			put(t, want, n, r.Uint64())
		}
	}
	s.o.Base = filepath.Join(s.dir, "base")
	info, err := memory.SaveFrom(t.Context(), want, s.o.Base)
	require.NoError(t, err)
	var mp *memory.Map
	for i := range layers {
		mp = s.capture(want, info.ID, mp, r, i)
	}
	return s
}

// capture changes some runs of pages, zeros some, and saves them as a VMM's dirty pages.
func (s *saved) capture(want *os.File, base memory.Hash, parent *memory.Map, r *rand.Rand, i int) *memory.Map {
	t := s.t
	dirty, err := os.Create(filepath.Join(s.dir, "dirty"))
	require.NoError(t, err)
	defer func() { _ = dirty.Close() }()
	require.NoError(t, dirty.Truncate(s.o.Bytes))
	pages := int(s.o.Bytes / memory.PageSize)
	for range pages / 64 {
		start := r.IntN(pages)
		seed := r.Uint64()
		for n := start; n < min(start+1+r.IntN(16), pages); n++ {
			put(t, want, n, seed*uint64(r.IntN(4)))
			page := make([]byte, memory.PageSize)
			_, err := want.ReadAt(page, int64(n)*memory.PageSize)
			require.NoError(t, err)
			_, err = dirty.WriteAt(page, int64(n)*memory.PageSize)
			require.NoError(t, err)
		}
	}
	mp, _, err := memory.CaptureDirty(t.Context(), dirty, base, parent, s.dir, false)
	require.NoError(t, err)
	s.o.Map = filepath.Join(s.dir, fmt.Sprintf("map-%d", i))
	require.NoError(t, memory.WriteMap(s.o.Map, mp))
	s.o.Layers = append(s.o.Layers, filepath.Join(s.dir, mp.LayerName(i)))
	return mp
}

// put writes a page; seed 0 makes it zero.
func put(t testing.TB, f *os.File, n int, seed uint64) {
	page := make([]byte, memory.PageSize)
	if seed != 0 {
		fillPage(page, seed)
	}
	_, err := f.WriteAt(page, int64(n)*memory.PageSize)
	require.NoError(t, err)
}

func (s *saved) start() *Pager {
	s.t.Helper()
	p, err := Start(s.t.Context(), s.o)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { s.stop(p) })
	return p
}

func (s *saved) stop(p *Pager) {
	ctx, cancel := undo.Context(context.Background())
	defer cancel()
	if log, err := os.ReadFile(p.path(logName)); err == nil && s.t.Failed() {
		s.t.Logf("the pager's log:\n%s", log)
	}
	if err := p.Stop(ctx); err != nil {
		s.t.Error(err)
	}
}

// vm is a VMM that this test binary plays.
type vm struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.Writer
	out  *bufio.Scanner
	proc VMM
}

// restore starts a VMM that connects, by way of a link as in a jail.
func (s *saved) restore(p *Pager) *vm {
	s.t.Helper()
	jail, err := os.MkdirTemp(s.dir, "j")
	require.NoError(s.t, err)
	require.NoError(s.t, os.Chmod(jail, 0o755))
	socket := filepath.Join(jail, "s")
	require.NoError(s.t, os.Link(p.Handle().Socket(), socket))
	return s.vmm(socket)
}

func (s *saved) vmm(socket string) *vm {
	t := s.t
	t.Helper()
	pages := int(s.o.Bytes / memory.PageSize)
	cmd := exec.Command("/proc/self/exe", "vmm", socket, s.want, strconv.Itoa(testUID), strconv.Itoa(pages*3/4))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	v := &vm{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(v.kill)
	require.Equal(t, "ready", v.answer())
	proc, err := process.Open(cmd.Process.Pid, 0)
	require.NoError(t, err)
	v.proc = VMM{proc.PID, proc.StartTime}
	proc.Release()
	return v
}

func (v *vm) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

func (v *vm) ask(format string, args ...any) {
	v.t.Helper()
	_, err := fmt.Fprintf(v.in, format+"\n", args...)
	require.NoError(v.t, err)
}

func (v *vm) answer() string {
	v.t.Helper()
	hung := time.AfterFunc(2*time.Minute, func() { _ = v.cmd.Process.Kill() })
	defer hung.Stop()
	require.True(v.t, v.out.Scan(), "the VMM is gone, or hung until it was killed")
	return v.out.Text()
}

// do has the VMM do something, in which it must not read a wrong byte.
func (v *vm) do(format string, args ...any) {
	v.t.Helper()
	v.ask(format, args...)
	require.Equal(v.t, "wrong 0", v.answer())
}

func (v *vm) ops() int {
	v.t.Helper()
	v.ask("ops")
	n, err := strconv.Atoi(strings.TrimSpace(v.answer()))
	require.NoError(v.t, err)
	return n
}

func kill(t testing.TB, p *Pager) {
	t.Helper()
	require.NoError(t, unix.Kill(p.Handle().PID, unix.SIGKILL))
}
