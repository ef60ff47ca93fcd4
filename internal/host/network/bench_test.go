package network

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkSlot times a slot's life on a host of its own:
//
//	go test ./internal/host/network -run '^$' -bench Slot -benchtime 50x
func BenchmarkSlot(b *testing.B) {
	opt := Options{Installation: installation(), StateDir: b.TempDir(), PoolSize: -1}
	ns := benchNS(b)
	opt.HostNS = nsPath(ns)
	m, err := New(opt)
	require.NoError(b, err)
	require.NoError(b, m.Start(b.Context()))
	b.Cleanup(func() { require.NoError(b, m.Uninstall(context.Background())) })

	for _, kind := range []PortKind{Tap, Veth} {
		m.opt.PoolPort = kind
		benchSlots(b, m, kind)
	}
}

func benchSlots(b *testing.B, m *Manager, kind PortKind) {
	b.Run("make+release "+string(kind), func(b *testing.B) {
		var making, releasing time.Duration
		for i := range b.N {
			start := time.Now()
			s, err := m.Acquire(b.Context(), fmt.Sprintf("sb%d", i), kind)
			require.NoError(b, err)
			made := time.Now()
			require.NoError(b, m.Release(b.Context(), s))
			making += made.Sub(start)
			releasing += time.Since(made)
		}
		b.ReportMetric(float64(making.Microseconds())/float64(b.N)/1000, "make-ms")
		b.ReportMetric(float64(releasing.Microseconds())/float64(b.N)/1000, "release-ms")
	})
	b.Run("acquire from pool "+string(kind), func(b *testing.B) {
		var slots []*Slot
		for range b.N {
			s, err := m.makeNext(b.Context(), kind)
			require.NoError(b, err)
			m.pool = append(m.pool, s)
		}
		b.ResetTimer()
		for i := range b.N {
			s, err := m.Acquire(b.Context(), fmt.Sprintf("p%d", i), kind)
			require.NoError(b, err)
			slots = append(slots, s)
		}
		b.StopTimer()
		for _, s := range slots {
			require.NoError(b, m.Release(b.Context(), s))
		}
	})
}

func benchNS(b *testing.B) *namespace {
	b.Helper()
	ns, err := anonymousNS()
	require.NoError(b, err)
	b.Cleanup(func() { _ = ns.close() })
	return ns
}

// BenchmarkDial times a connection to a guest and its first bytes.
func BenchmarkDial(b *testing.B) {
	opt := Options{Installation: installation(), StateDir: b.TempDir(), PoolSize: -1}
	opt.HostNS = nsPath(benchNS(b))
	m, err := New(opt)
	require.NoError(b, err)
	require.NoError(b, m.Start(b.Context()))
	b.Cleanup(func() { require.NoError(b, m.Uninstall(context.Background())) })
	s, err := m.Acquire(b.Context(), "sb1", Tap)
	require.NoError(b, err)
	g := plugGuest(b, s)
	serveTCP(b, g.ns, webPort)
	for b.Loop() {
		c, err := s.Dial(b.Context(), webPort)
		require.NoError(b, err)
		require.NoError(b, c.Close())
	}
}
