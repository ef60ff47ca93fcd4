package vmmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
)

// BenchmarkRestore measures restores of an idle guest: to the loaded state, to running, and to
// the first answer over a new connection; and the CPU time that the VMM took for them, which
// tells more on a busy machine.
func BenchmarkRestore(b *testing.B, d vmm.Driver, fixtures Fixtures) {
	s := newSuite(b, func(testing.TB) vmm.Driver { return d }, fixtures)
	tpl := s.newTemplate(b, func(g *guest) { g.ask(b, "poke who template") })
	sum := figures{}
	for b.Loop() {
		b.StopTimer()
		m := s.copyOf(b, tpl, diskMB)
		b.StartTimer()
		vm := sum.restore(b, d, tpl, m)
		b.StopTimer()
		sum.rest(b, vm)
		began := time.Now()
		require.NoError(b, vm.Kill(b.Context()))
		sum["killed-ms"] += ms(time.Since(began))
		b.StartTimer()
	}
	for name, total := range sum {
		b.ReportMetric(total/float64(b.N), name)
	}
}

// figures are sums by name.
type figures map[string]float64

func (f figures) restore(b *testing.B, d vmm.Driver, tpl *template, m *machine) vmm.VM {
	b.Helper()
	began := time.Now()
	vm, err := d.Restore(b.Context(), m.cfg, tpl.state, nil)
	require.NoError(b, err)
	f["loaded-ms"] += ms(time.Since(began))
	f["loaded-cpu-ms"] += cpuTime(b, vm.Handle().PID)
	require.NoError(b, vm.Resume(b.Context()))
	f["resumed-ms"] += ms(time.Since(began))
	require.Equal(b, "template", m.reach(b).ask(b, "peek who"))
	f["answered-ms"] += ms(time.Since(began))
	f["answered-cpu-ms"] += cpuTime(b, vm.Handle().PID)
	return vm
}

// rest adds what the VMM holds.
func (f figures) rest(b *testing.B, vm vmm.VM) {
	b.Helper()
	m := memoryOf(b, vm.Handle().PID)
	f["anonymous-MB"] += m["Anonymous:"]
	f["pss-MB"] += m["Pss:"]
}

// memoryOf is a process's smaps_rollup in MiB.
func memoryOf(t testing.TB, pid int) map[string]float64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	require.NoError(t, err)
	out := map[string]float64{}
	for line := range strings.Lines(string(raw)) {
		var name string
		var kib float64
		if n, _ := fmt.Sscan(line, &name, &kib); n == 2 {
			out[name] = kib / 1024
		}
	}
	return out
}

// cpuTime is what all threads of a process took, in ms.
func cpuTime(t testing.TB, pid int) float64 {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	require.NoError(t, err)
	var sum float64
	for _, task := range tasks {
		var ns float64
		if raw, err := os.ReadFile(task); err == nil {
			_, _ = fmt.Sscan(string(raw), &ns)
		}
		sum += ns / 1e6
	}
	return sum
}
