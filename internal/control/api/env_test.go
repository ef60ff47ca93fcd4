package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is a whole control plane on loopback, an agent behind it, and a client.
type env struct {
	*testing.T
	agent  *agenttest.Agent
	server *server.Server
	url    string
	key    string
	http   *http.Client
	client *v1.ClientWithResponses
	log    *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func newEnv(t *testing.T) *env {
	t.Helper()
	t.Parallel()
	e := &env{T: t, agent: agenttest.New(t), log: &syncBuffer{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	e.server, err = server.New(server.Config{DataDir: t.TempDir(), Listener: l, Host: e.agent.Client,
		ProxyBase: agenttest.Base, ProxyTransport: e.agent.Transport, Version: "v-test",
		Logger:         slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		ReconcileEvery: time.Hour, Grace: 2 * time.Second})
	require.NoError(t, err)
	require.NoError(t, e.server.Start(t.Context()))
	t.Cleanup(e.server.Stop)
	e.url, e.key = "http://"+l.Addr().String(), e.server.FirstKey()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	e.http = &http.Client{Transport: tr}
	e.client, err = v1.NewClientWithResponses(e.url, v1.WithHTTPClient(e.http),
		v1.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("X-API-Key", e.key)
			return nil
		}))
	require.NoError(t, err)
	return e
}

func (e *env) create() string {
	e.Helper()
	r, err := e.client.CreateSandboxWithResponse(e.Context(), nil, v1.CreateSandbox{})
	require.NoError(e, err)
	require.Equal(e, 201, r.StatusCode(), "%s", r.Body)
	return r.JSON201.Id
}

// do sends a raw request with the key.
func (e *env) do(method, path, body string, header ...string) (int, string) {
	e.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(e.Context(), method, e.url+path, rd)
	require.NoError(e, err)
	req.Header.Set("Authorization", "Bearer "+e.key)
	if strings.HasPrefix(body, "{") {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := e.http.Do(req)
	require.NoError(e, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(e, err)
	return resp.StatusCode, string(raw)
}

// problem reads an error body and fails on any other shape.
func (e *env) problem(raw string) v1.Error {
	e.Helper()
	var b v1.ErrorBody
	d := json.NewDecoder(strings.NewReader(raw))
	d.DisallowUnknownFields()
	require.NoError(e, d.Decode(&b), raw)
	require.NotEmpty(e, b.Error.Code)
	require.NotEmpty(e, b.Error.Message)
	return b.Error
}

func ptr[T any](v T) *T { return &v }
