package vmmtest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
)

// BenchmarkRestore measures restores of an idle guest: to the loaded state, to running, and to
// the first answer over a new connection.
func BenchmarkRestore(b *testing.B, d vmm.Driver, fixtures Fixtures) {
	s := &suite{newDriver: func(testing.TB) vmm.Driver { return d }, fixtures: fixtures}
	tpl := s.newTemplate(b, func(g *guest) { g.ask(b, "poke who template") })
	var loaded, resumed, answered, killed time.Duration
	var private, pss int64
	for b.Loop() {
		b.StopTimer()
		m := s.copyOf(b, tpl, diskMB)
		b.StartTimer()
		began := time.Now()
		vm, err := d.Restore(b.Context(), m.cfg, tpl.state, nil)
		require.NoError(b, err)
		loaded += time.Since(began)
		require.NoError(b, vm.Resume(b.Context()))
		resumed += time.Since(began)
		require.Equal(b, "template", m.reach(b).ask(b, "peek who"))
		answered += time.Since(began)
		b.StopTimer()
		p, q := privateMemory(b, vm.Handle().PID)
		private, pss = private+p, pss+q
		began = time.Now()
		require.NoError(b, vm.Kill(b.Context()))
		killed += time.Since(began)
		b.StartTimer()
	}
	n := float64(b.N)
	b.ReportMetric(ms(loaded)/n, "loaded-ms")
	b.ReportMetric(ms(resumed)/n, "resumed-ms")
	b.ReportMetric(ms(answered)/n, "answered-ms")
	b.ReportMetric(ms(killed)/n, "killed-ms")
	b.ReportMetric(float64(private)/n/1024, "private-MB")
	b.ReportMetric(float64(pss)/n/1024, "pss-MB")
}

// privateMemory is what a process has for itself, and its share of the rest, in KiB.
func privateMemory(t testing.TB, pid int) (private, pss int64) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(raw)) {
		var name string
		var kib int64
		if n, _ := fmt.Sscan(line, &name, &kib); n != 2 {
			continue
		}
		switch name {
		case "Private_Clean:", "Private_Dirty:":
			private += kib
		case "Pss:":
			pss = kib
		}
	}
	return private, pss
}
