package uffd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
)

func TestPagesAreServed(t *testing.T) {
	t.Parallel()
	for _, layers := range []int{0, 3} {
		s := newSaved(t, 8192, layers)
		p := s.start()
		v := s.restore(p)
		v.do("random 0 8192 4")
		v.do("read 0 8192 2")
		st, err := p.Stats()
		require.NoError(t, err)
		t.Logf("%d layers: %+v", layers, st)
		require.Equal(t, uint64(8192), st.Copied+st.Zeroed)
		v.kill()
		<-p.Exited()
		require.NoError(t, p.Err())
	}
}

func TestRemovedPagesAreZeroForEver(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 4096, 2)
	p := s.start()
	v := s.restore(p)
	v.do("read 0 1000 2")
	v.do("remove 500 1500") // some were there, some never
	v.do("remove 3000 3200")
	v.do("read 0 4096 4")
	st, err := p.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(1200), st.Removed)
}

func TestPrefetchSparesFaults(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 8192, 3)
	set := filepath.Join(s.dir, "set")
	s.o.WorkingSet = set
	resume := func() Stats {
		p := s.start()
		v := s.restore(p)
		v.do("random 1000 5000 2")
		st, err := p.Stats()
		require.NoError(t, err)
		if _, err := os.Stat(set); err != nil {
			require.NoError(t, SaveWorkingSet(s.o.Dir, set))
		}
		v.kill()
		<-p.Exited()
		require.NoError(t, p.Err())
		return st
	}
	without := resume()
	require.Zero(t, without.Prefetched)

	// Prefetch runs beside the resume, so how many faults are left depends on who is faster. For
	// the figure the guest begins when it is done.
	p := s.start()
	v := s.restore(p)
	require.Eventually(t, func() bool {
		st, err := p.Stats()
		return err == nil && st.Prefetched >= 4000
	}, time.Minute, time.Millisecond)
	v.do("random 1000 5000 2")
	with, err := p.Stats()
	require.NoError(t, err)
	t.Logf("faults: %d without, %d with prefetch", without.Faults, with.Faults)
	require.Less(t, float64(with.Faults), 0.05*float64(without.Faults))
	v.do("read 0 8192 2")
	v.kill()
	<-p.Exited()

	require.NoError(t, os.WriteFile(set, []byte("damaged"), 0o600))
	require.Zero(t, resume().Prefetched)
}

func TestEndsWithItsVM(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 1024, 1)
	p := s.start()
	v := s.restore(p)
	v.do("read 0 100 1")
	h, err := Adopt(p.Handle())
	require.NoError(t, err)
	v.kill()
	<-h.Exited()
	require.NoError(t, h.Err())
	_, err = Adopt(p.Handle())
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
}

func TestDamageIsNeverServed(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 4096, 2)
	layer, err := os.OpenFile(s.o.Layers[0], os.O_RDWR, 0)
	require.NoError(t, err)
	p := s.start()
	v := s.restore(p)
	st, err := layer.Stat()
	require.NoError(t, err)
	for at := int64(0); at < st.Size(); at += memory.PageSize {
		_, err = layer.WriteAt([]byte("x"), at)
		require.NoError(t, err)
	}
	require.NoError(t, layer.Close())
	v.ask("read 0 4096 2") // it will not answer
	var reason error
	err = Supervise(t.Context(), p, s.o, v.proc, func(*Pager) { t.Error("attached again") }, func(err error) {
		reason = err
		v.kill()
	})
	require.True(t, fault.Is(err, fault.DataLoss), "%v", err)
	require.Equal(t, err, reason)
	require.False(t, v.out.Scan(), "it read something")
	t.Log(err)
}

func TestMissingAndDamagedFilesAreToldAtOnce(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 1024, 2)
	for name, change := range map[string]func(o *StartOptions){
		"base":   func(o *StartOptions) { o.Base = filepath.Join(s.dir, "none") },
		"map":    func(o *StartOptions) { o.Map = o.Base },
		"layers": func(o *StartOptions) { o.Layers = o.Layers[:1] },
		"size":   func(o *StartOptions) { o.Bytes *= 2 },
	} {
		o := s.o
		change(&o)
		_, err := Start(t.Context(), o)
		require.Error(t, err, name)
		list, err := os.ReadDir(o.Dir)
		require.NoError(t, err)
		require.Empty(t, list, name)
	}
}

func TestTwoHundredStartsLeaveNothing(t *testing.T) {
	s := newSaved(t, 256, 1)
	cycle := func() {
		p, err := Start(t.Context(), s.o)
		require.NoError(t, err)
		require.NoError(t, p.Stop(t.Context())) // nobody ever connects
		require.NoError(t, p.Stop(t.Context()))
	}
	count := func(what string) int {
		list, err := os.ReadDir("/proc/self/" + what)
		require.NoError(t, err)
		return len(list)
	}
	for range 5 {
		cycle()
	}
	fds, threads := count("fd"), count("task")
	n := 195
	if testing.Short() {
		n = 20
	}
	for range n {
		cycle()
	}
	require.LessOrEqual(t, count("fd"), fds)
	require.LessOrEqual(t, count("task"), threads+4) // the runtime keeps a few
	list, err := os.ReadDir(s.o.Dir)
	require.NoError(t, err)
	require.Len(t, list, 1, "the log")
}

func TestProcessHasLittle(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 256, 1)
	p := s.start()
	v := s.restore(p)
	v.do("read 0 256 1")
	pid := p.Handle().PID
	read := func(name string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		require.NoError(t, err)
		return string(b)
	}
	require.Regexp(t, `(?m)^Uid:\s61907\s61907\s61907\s61907$`, read("status"))
	require.Regexp(t, `(?m)^Groups:\s*$`, read("status"))
	require.Regexp(t, `(?m)^CapEff:\s0+$`, read("status"))
	require.Regexp(t, `(?m)^Max open files\s+64\s+64`, read("limits"))
	require.Regexp(t, `(?m)^Max core file size\s+0\s+0`, read("limits"))
	sid, err := unix.Getsid(pid)
	require.NoError(t, err)
	require.Equal(t, pid, sid)
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	var links []string
	for _, e := range fds {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		require.NoError(t, err)
		links = append(links, e.Name()+" "+link)
	}
	require.NotContains(t, strings.Join(links, " "), "pipe:", "the test's own")
	require.Less(t, len(fds), 20, "%q", links)
}
