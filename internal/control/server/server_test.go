package server_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/server"
	"github.com/roosthq/roost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(a *agenttest.Agent, dir string) server.Config {
	return server.Config{DataDir: dir, Listen: "127.0.0.1:0", Host: a.Client, ProxyBase: agenttest.Base,
		ProxyTransport: a.Transport, Logger: slog.New(slog.DiscardHandler), ReconcileEvery: 10 * time.Millisecond,
		Grace: 200 * time.Millisecond}
}

func client(t *testing.T, s *server.Server, key string) *v1.ClientWithResponses {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	c, err := v1.NewClientWithResponses("http://"+s.Addr().String(), v1.WithHTTPClient(&http.Client{Transport: tr}),
		v1.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("X-API-Key", key)
			return nil
		}))
	require.NoError(t, err)
	return c
}

func TestRestartKeepsKeysAndSandboxes(t *testing.T) {
	t.Parallel()
	a, dir := agenttest.New(t), t.TempDir()
	s, err := server.New(config(a, dir))
	require.NoError(t, err)
	require.Nil(t, s.Addr())
	require.NoError(t, s.Start(t.Context()))
	require.NoError(t, s.Start(t.Context()), "twice is fine")
	key := s.FirstKey()
	require.NotEmpty(t, key)
	info, err := os.Stat(filepath.Join(dir, "roost.db"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	second, err := server.New(config(a, dir))
	require.NoError(t, err)
	err = second.Start(t.Context())
	require.True(t, fault.Is(err, fault.FailedPrecondition), "one control plane a database: %v", err)
	second.Stop()

	r, err := client(t, s, key).CreateSandboxWithResponse(t.Context(), nil, v1.CreateSandbox{})
	require.NoError(t, err)
	id := r.JSON201.Id
	s.Stop()
	s.Stop()

	s, err = server.New(config(a, dir))
	require.NoError(t, err)
	require.NoError(t, s.Start(t.Context()))
	defer s.Stop()
	require.Empty(t, s.FirstKey())
	got, err := client(t, s, key).GetSandboxWithResponse(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, v1.Running, got.JSON200.State)
}

func TestStartsWithoutTheAgent(t *testing.T) {
	t.Parallel()
	a := agenttest.New(t)
	a.Unlisten()
	s, err := server.New(config(a, t.TempDir()))
	require.NoError(t, err)
	require.NoError(t, s.Start(t.Context()))
	defer s.Stop()
	r, err := client(t, s, s.FirstKey()).CreateSandboxWithResponse(t.Context(), nil, v1.CreateSandbox{})
	require.NoError(t, err)
	require.Equal(t, 503, r.StatusCode(), "%s", r.Body)
	require.Contains(t, *r.JSONDefault.Error.Hint, "roost doctor")
}

func TestTakenPortMakesNoKey(t *testing.T) {
	t.Parallel()
	a, dir := agenttest.New(t), t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c := config(a, dir)
	c.Listen = l.Addr().String()
	s, err := server.New(c)
	require.NoError(t, err)
	require.ErrorContains(t, s.Start(t.Context()), "listen on "+c.Listen)
	s.Stop()
	s, err = server.New(config(a, dir))
	require.NoError(t, err)
	require.NoError(t, s.Start(t.Context()))
	defer s.Stop()
	require.NotEmpty(t, s.FirstKey(), "the key is not lost")
}

func TestStopIsBounded(t *testing.T) {
	t.Parallel()
	a := agenttest.New(t)
	s, err := server.New(config(a, t.TempDir()))
	require.NoError(t, err)
	require.NoError(t, s.Start(t.Context()))
	c := client(t, s, s.FirstKey())
	r, err := c.CreateSandboxWithResponse(t.Context(), nil, v1.CreateSandbox{})
	require.NoError(t, err)
	entered := make(chan struct{})
	a.Before(func(ctx context.Context, m, _ string) error {
		if m != "PauseSandbox" {
			return nil
		}
		close(entered)
		<-ctx.Done() // a host that never answers
		return ctx.Err()
	})
	go func() { _, _ = c.PauseSandboxWithResponse(context.Background(), r.JSON201.Id, v1.Pause{}) }()
	<-entered
	start := time.Now()
	s.Stop()
	require.Less(t, time.Since(start), 5*time.Second)
}

func TestStopBeforeStart(t *testing.T) {
	t.Parallel()
	s, err := server.New(config(agenttest.New(t), t.TempDir()))
	require.NoError(t, err)
	s.Stop()
	require.Error(t, s.Start(t.Context()))
}

func TestConfigNamesTheField(t *testing.T) {
	t.Parallel()
	a := agenttest.New(t)
	for field, spoil := range map[string]func(*server.Config){
		"DataDir":   func(c *server.Config) { c.DataDir = "" },
		"Listen":    func(c *server.Config) { c.Listen = "" },
		"Host":      func(c *server.Config) { c.Host = nil },
		"ProxyBase": func(c *server.Config) { c.ProxyBase = "" },
		"Grace":     func(c *server.Config) { c.Grace = -1 },
	} {
		c := config(a, t.TempDir())
		spoil(&c)
		_, err := server.New(c)
		require.ErrorContains(t, err, field)
	}
}
