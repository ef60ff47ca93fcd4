package server_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/api"
	"github.com/roosthq/roost/internal/control/apikey"
	"github.com/roosthq/roost/internal/control/guestproxy"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/leak"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
)

// deaf fails when anything is written to it.
type deaf struct{ t *testing.T }

func (d deaf) Header() http.Header { return http.Header{} }
func (d deaf) Write(p []byte) (int, error) {
	d.t.Errorf("written to a client that has gone: %s", p)
	return 0, errors.New("gone")
}
func (d deaf) WriteHeader(status int) { d.t.Errorf("answered to a client that has gone: %d", status) }

// newAPI is the handler alone, for what a server would hide.
func newAPI(t *testing.T) (*api.API, *agenttest.Agent, *sandbox.Service, *template.Service, string) {
	t.Helper()
	agent, log := agenttest.New(t), slog.New(slog.DiscardHandler)
	db, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), store.FileName))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	hosts := host.New(db, agent.Client, log, time.Now)
	require.NoError(t, hosts.Register(t.Context()))
	keys := apikey.New(db, log, time.Now)
	secret, err := keys.First(t.Context())
	require.NoError(t, err)
	templates := template.New(db, agent.Client, log, time.Now)
	t.Cleanup(templates.Stop)
	sandboxes := sandbox.New(sandbox.Config{Store: db, Client: agent.Client, Templates: templates, Hosts: hosts, Logger: log, Now: time.Now})
	t.Cleanup(sandboxes.Close)
	a := api.New(api.Config{Sandboxes: sandboxes, Templates: templates, Keys: keys, Hosts: hosts,
		Leaks: leak.New(db, agent.Client, templates), Guests: guestproxy.New(agenttest.Base, agent.Transport), Logger: log})
	t.Cleanup(a.Close)
	return a, agent, sandboxes, templates, secret
}

// A client that has gone by the time a long snapshot (or template) ends gets nothing written
// to its connection, and what it asked for stands.
func TestNothingIsWrittenToAClientThatHasGone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ method, path, body string }{
		{"CreateSnapshot", "/v1/snapshots", `{"sandbox_id":"ID","name":"x"}`},
		{"CreateTemplate", "/v1/templates", `{"from":"ID","name":"x"}`},
	} {
		for _, fails := range []bool{false, true} {
			a, agent, sandboxes, templates, secret := newAPI(t)
			sb, err := sandboxes.Create(t.Context(), sandbox.Request{})
			require.NoError(t, err)
			ctx, leave := context.WithCancel(t.Context())
			agent.Before(func(_ context.Context, m, _ string) error {
				if m != c.method {
					return nil
				}
				leave()
				if fails {
					return connect.NewError(connect.CodeResourceExhausted, errors.New("disk is full"))
				}
				return nil
			})
			r := httptest.NewRequestWithContext(ctx, "POST", c.path, strings.NewReader(strings.Replace(c.body, "ID", sb.ID, 1)))
			r.Header.Set("X-API-Key", secret)
			require.PanicsWithValue(t, http.ErrAbortHandler, func() { a.ServeHTTP(deaf{t}, r) }, "the server closes the connection")
			agent.Before(nil)
			list, err := templates.List(t.Context(), "", "")
			require.NoError(t, err)
			if fails {
				require.Len(t, list, 2)
			} else {
				require.Len(t, list, 3)
			}
			for _, v := range list {
				require.Equal(t, store.TemplateReady, v.State)
			}
		}
	}
}
