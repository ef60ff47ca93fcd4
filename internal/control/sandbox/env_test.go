package sandbox_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is a service over a real database and an agent on a real socket.
type env struct {
	*testing.T
	*sandbox.Service
	agent     *agenttest.Agent
	store     *store.Store
	templates *template.Service
	config    sandbox.Config

	mu   sync.Mutex
	time time.Time
}

// now is a clock that moves only when the test says so.
func (e *env) now() time.Time          { e.mu.Lock(); defer e.mu.Unlock(); return e.time }
func (e *env) advance(d time.Duration) { e.mu.Lock(); defer e.mu.Unlock(); e.time = e.time.Add(d) }

func newEnv(t *testing.T, change ...func(*sandbox.Config)) *env {
	t.Helper()
	t.Parallel()
	return newEnvNow(t, change...)
}

// newEnvNow is for a second one in a test.
func newEnvNow(t *testing.T, change ...func(*sandbox.Config)) *env {
	t.Helper()
	e := &env{T: t, agent: agenttest.New(t), time: time.Now()}
	var err error
	e.store, err = store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), store.FileName))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.store.Close()) })
	hosts := host.New(e.store, e.agent.Client, slog.New(slog.DiscardHandler), e.now)
	require.NoError(t, hosts.Register(t.Context()))
	e.templates = template.New(e.store, e.agent.Client, slog.New(slog.DiscardHandler), e.now)
	t.Cleanup(e.templates.Stop)
	c := sandbox.Config{Store: e.store, Client: e.agent.Client, Templates: e.templates,
		Hosts: hosts, Logger: slog.New(slog.DiscardHandler), Now: e.now}
	for _, f := range change {
		f(&c)
	}
	e.config = c
	e.Service = sandbox.New(c)
	t.Cleanup(e.Service.Close)
	return e
}

func spec() sandbox.Spec {
	return sandbox.Spec{Template: "base", VCPUs: 1, MemoryMB: 512, DiskSizeMB: 5120}
}

func ptr[T any](v T) *T { return &v }

func (e *env) create() *store.Sandbox {
	e.Helper()
	row, err := e.Create(e.Context(), sandbox.Request{Spec: spec()})
	require.NoError(e, err)
	return row
}

func (e *env) row(id string) *store.Sandbox {
	e.Helper()
	row, err := e.store.Sandbox(context.Background(), id)
	require.NoError(e, err)
	return row
}

// only is the one sandbox of a state.
func (e *env) only(state store.State) *store.Sandbox {
	e.Helper()
	rows, err := e.store.Sandboxes(context.Background(), store.Filter{State: state})
	require.NoError(e, err)
	require.Len(e, rows, 1)
	return rows[0]
}

// gate blocks a method's calls until it is opened.
type gate struct {
	entered chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{make(chan struct{}, 64), make(chan struct{})} }

func (g *gate) hook(method string) agenttest.Hook {
	return func(ctx context.Context, m, _ string) error {
		if m != method {
			return nil
		}
		g.entered <- struct{}{}
		select {
		case <-g.open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failing makes a method fail.
func failing(method string, err error) agenttest.Hook {
	return func(_ context.Context, m, _ string) error {
		if m == method {
			return err
		}
		return nil
	}
}
