package api_test

import (
	"context"
	"log/slog"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/server"
)

// The control plane's own share: the agent behind it answers at once.

func BenchmarkCreateDelete(b *testing.B) {
	e := newBench(b)
	for b.Loop() {
		r, err := e.CreateSandboxWithResponse(b.Context(), nil, v1.CreateSandbox{})
		require.NoError(b, err)
		_, err = e.DeleteSandboxWithResponse(b.Context(), r.JSON201.Id)
		require.NoError(b, err)
	}
}

func BenchmarkPauseResume(b *testing.B) {
	e := newBench(b)
	r, err := e.CreateSandboxWithResponse(b.Context(), nil, v1.CreateSandbox{})
	require.NoError(b, err)
	for b.Loop() {
		_, err = e.PauseSandboxWithResponse(b.Context(), r.JSON201.Id, v1.Pause{})
		require.NoError(b, err)
		_, err = e.ResumeSandboxWithResponse(b.Context(), r.JSON201.Id, v1.Resume{})
		require.NoError(b, err)
	}
}

func BenchmarkExecTrue(b *testing.B) {
	e := newBench(b)
	r, err := e.CreateSandboxWithResponse(b.Context(), nil, v1.CreateSandbox{})
	require.NoError(b, err)
	for b.Loop() {
		x, err := e.ExecSandboxWithResponse(b.Context(), r.JSON201.Id, v1.Exec{Cmd: []string{"/bin/true"}})
		require.NoError(b, err)
		require.Equal(b, 200, x.StatusCode())
	}
}

func BenchmarkGet(b *testing.B) {
	e := newBench(b)
	r, err := e.CreateSandboxWithResponse(b.Context(), nil, v1.CreateSandbox{})
	require.NoError(b, err)
	for b.Loop() {
		_, err := e.GetSandboxWithResponse(b.Context(), r.JSON201.Id)
		require.NoError(b, err)
	}
}

func newBench(b *testing.B) *v1.ClientWithResponses {
	b.Helper()
	s, key := startServer(b)
	tr := &http.Transport{}
	b.Cleanup(tr.CloseIdleConnections)
	c, err := v1.NewClientWithResponses("http://"+s, v1.WithHTTPClient(&http.Client{Transport: tr}),
		v1.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("X-API-Key", key)
			return nil
		}))
	require.NoError(b, err)
	return c
}

func startServer(b *testing.B) (addr, key string) {
	b.Helper()
	a := agenttest.New(b)
	s, err := server.New(server.Config{DataDir: b.TempDir(), Listen: "127.0.0.1:0", Host: a.Client,
		ProxyBase: agenttest.Base, ProxyTransport: a.Transport, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(b, err)
	require.NoError(b, s.Start(b.Context()))
	b.Cleanup(s.Stop)
	return s.Addr().String(), s.FirstKey()
}
