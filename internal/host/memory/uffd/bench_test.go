package uffd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/bench/harness"
	"github.com/roosthq/roost/internal/host/memory"
)

const benchPages = 16384

// minimal serves faults as simply as can be: read one, copy one page that is at hand. Descriptor 3
// is the listening socket.
func minimal() {
	p, err := accept(os.NewFile(3, "socket"), -1)
	check(err)
	u, err := takeUserfault(p.uffd)
	check(err)
	page := make([]byte, memory.PageSize)
	fillPage(page, 1)
	wait := newPoller(int(u), int(p.pidfd.Fd()))
	for {
		check(wait.wait())
		if wait.ready(1) {
			os.Exit(0)
		}
		var m message
		if _, err := unix.Read(int(u), unsafe.Slice((*byte)(unsafe.Pointer(&m)), messageSize)); err != nil {
			continue
		}
		_, err := u.copyIn(m.b, page)
		check(err)
	}
}

// BenchmarkHandler compares the time in which a VM reads all its memory, each page once and in no
// order, with the minimal loop's; ABBA pairs, ratio of medians, each with an interval. The ratio of single pages is the one
// that has a limit: the window is what makes the default faster. With ROOST_BENCH_OUT the results
// go to that file, for `make bench`.
//
//	go test -run '^$' -bench Handler -benchtime 1x ./internal/host/memory/uffd
func BenchmarkHandler(b *testing.B) {
	plain, layered := fullMemory(b, false), fullMemory(b, true)
	pairs, err := strconv.Atoi(os.Getenv("ROOST_BENCH_PAIRS"))
	if err != nil {
		pairs = 10
	}
	for b.Loop() {
		var results []harness.Result
		measure := func(metric string, e harness.Experiment) {
			e.Unit, e.Pairs = harness.Seconds, pairs
			if e.B == nil {
				e.B = harness.Duration(plain.againstMinimal(false))
			}
			r, err := harness.Run(b.Context(), e)
			require.NoError(b, err)
			b.ReportMetric(r.Ratio.Median, metric)
			b.Logf("%s: %s, A %s, B %s, %s", e.Name, r.Ratio, r.A, r.B, r.Verdict())
			results = append(results, r)
		}
		measure("template/minimal", harness.Experiment{Name: "uffd: page by page from the template ÷ minimal loop", Limit: 1.3, A: harness.Duration(plain.timed(1, false))})
		measure("layer/minimal", harness.Experiment{Name: "uffd: page by page from a layer, with hashes ÷ minimal loop", Limit: 1.3, A: harness.Duration(layered.timed(1, false))})
		cpu := harness.Duration(plain.againstMinimal(true))
		measure("template/minimal-cpu", harness.Experiment{Name: "uffd: handler's CPU time, page by page from the template ÷ minimal loop", A: harness.Duration(plain.timed(1, true)), B: cpu})
		measure("layer/minimal-cpu", harness.Experiment{Name: "uffd: handler's CPU time, page by page from a layer, with hashes ÷ minimal loop", A: harness.Duration(layered.timed(1, true)), B: cpu})
		measure("window16/minimal-cpu", harness.Experiment{Name: "uffd: handler's CPU time, from a layer, 16 pages around a fault ÷ minimal loop", A: harness.Duration(layered.timed(16, true)), B: cpu})
		for _, window := range []int{4, 16, 64, 256} {
			name := "uffd: from a layer, " + strconv.Itoa(window) + " pages around a fault ÷ minimal loop"
			measure("window"+strconv.Itoa(window)+"/minimal", harness.Experiment{Name: name, A: harness.Duration(layered.timed(window, false))})
		}
		if out := os.Getenv("ROOST_BENCH_OUT"); out != "" {
			raw, err := json.Marshal(results)
			require.NoError(b, err)
			require.NoError(b, os.WriteFile(out, raw, 0o600))
		}
	}
}

// fullMemory is a memory without zeros, in the template or all in a layer over it.
func fullMemory(b *testing.B, layer bool) *saved {
	s := newSaved(b, benchPages, 0)
	f, err := os.OpenFile(s.want, os.O_RDWR, 0)
	require.NoError(b, err)
	b.Cleanup(func() { _ = f.Close() })
	for n := range benchPages {
		put(b, f, n, uint64(n+1))
	}
	info, err := memory.SaveFrom(b.Context(), f, s.o.Base)
	require.NoError(b, err)
	if layer {
		mp, _, err := memory.CaptureDirty(b.Context(), f, info.ID, nil, s.dir, false)
		require.NoError(b, err)
		s.o.Map = filepath.Join(s.dir, "map")
		require.NoError(b, memory.WriteMap(s.o.Map, mp))
		s.o.Layers = []string{filepath.Join(s.dir, mp.LayerName(0))}
	}
	s.o.Record = -1
	return s
}

func (s *saved) timed(window int, cpu bool) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		o := s.o
		o.Window = window
		p, err := Start(ctx, o)
		if err != nil {
			return 0, err
		}
		v := s.restore(p)
		d := v.timed(p.Handle().PID, cpu)
		v.kill()
		<-p.Exited()
		return d, p.Stop(ctx)
	}
}

func (s *saved) againstMinimal(cpu bool) func(context.Context) (time.Duration, error) {
	return func(context.Context) (time.Duration, error) { return s.minimal(cpu) }
}

func (s *saved) minimal(cpu bool) (time.Duration, error) {
	dir, err := os.MkdirTemp(s.dir, "m")
	require.NoError(s.t, err)
	require.NoError(s.t, os.Chmod(dir, 0o755))
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(s.t, err)
	require.NoError(s.t, os.Chmod(filepath.Join(dir, "s"), 0o666))
	f, err := l.(*net.UnixListener).File()
	require.NoError(s.t, err)
	cmd := exec.Command("/proc/self/exe", "minimal")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, os.Stderr
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	// In a session of its own, as the pager is: to a busy kernel's scheduler that is a group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(s.t, cmd.Start())
	_ = f.Close()
	v := s.vmm(filepath.Join(dir, "s"))
	d := v.timed(cmd.Process.Pid, cpu)
	v.kill()
	return d, cmd.Wait()
}

// timed is how long the VM takes or, with cpu, how much of the processor the handler does: the
// first is what users feel, the second what a busy machine does not change.
func (v *vm) timed(handler int, cpu bool) time.Duration {
	before := cpuOf(v.t, handler)
	v.ask("timed 0 %d", benchPages)
	n, err := strconv.ParseInt(v.answer(), 10, 64)
	require.NoError(v.t, err)
	if cpu {
		return cpuOf(v.t, handler) - before
	}
	return time.Duration(n)
}

func cpuOf(t testing.TB, pid int) (total time.Duration) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	require.NoError(t, err)
	for _, task := range tasks {
		raw, err := os.ReadFile(task)
		require.NoError(t, err)
		var ns int64
		_, err = fmt.Sscan(string(raw), &ns)
		require.NoError(t, err)
		total += time.Duration(ns)
	}
	return total
}
