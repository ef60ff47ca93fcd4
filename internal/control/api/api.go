package api

import (
	"context"
	"log/slog"
	"net/http"
	"sync"

	"github.com/go-chi/chi/v5"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/apikey"
	"github.com/roosthq/roost/internal/control/guestproxy"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/leak"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

// Config is what an API works with.
type Config struct {
	Sandboxes *sandbox.Service
	Templates *template.Service
	Keys      *apikey.Service
	Hosts     *host.Service
	Leaks     *leak.Service
	Guests    *guestproxy.Proxy
	Logger    *slog.Logger
	Version   string
}

// API is the HTTP handler of /v1 and /health.
type API struct {
	sandboxes *sandbox.Service
	templates *template.Service
	keys      *apikey.Service
	hosts     *host.Service
	leaks     *leak.Service
	guests    *guestproxy.Proxy
	log       *slog.Logger
	version   string
	router    http.Handler

	mu       sync.Mutex
	closed   bool
	sessions sync.WaitGroup
	closing  context.Context
	end      context.CancelFunc
}

var _ v1.StrictServerInterface = (*API)(nil)

// New makes an API.
func New(c Config) *API {
	closing, end := context.WithCancel(context.Background())
	a := &API{
		sandboxes: c.Sandboxes, templates: c.Templates, keys: c.Keys, hosts: c.Hosts,
		leaks: c.Leaks, guests: c.Guests, log: c.Logger, version: c.Version, closing: closing, end: end,
	}
	a.router = a.routes()
	return a
}

func (a *API) routes() http.Handler {
	r := chi.NewRouter()
	r.Use(a.observe, a.contain, a.authenticate, a.limitBody, keepRequest)
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		a.fail(w, r, fault.New(fault.NotFound, "", "", r.Method+" "+r.URL.Path+" is not part of this API"))
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, http.StatusMethodNotAllowed,
			fault.New(fault.Unimplemented, "", "", r.Method+" is not possible on "+r.URL.Path))
	})
	strict := v1.NewStrictHandlerWithOptions(a, nil, v1.StrictHTTPServerOptions{
		RequestErrorHandlerFunc: a.badRequest, ResponseErrorHandlerFunc: a.fail,
	})
	return v1.HandlerWithOptions(strict, v1.ChiServerOptions{BaseRouter: r, ErrorHandlerFunc: a.badRequest})
}

// ServeHTTP serves one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.router.ServeHTTP(w, r) }

// Close ends WebSocket sessions, which an http.Server does not know any more, and waits for
// them. Their processes go on.
func (a *API) Close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.end()
	a.sessions.Wait()
}

// open registers a session that Close waits for.
func (a *API) open() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fault.New(fault.Unavailable, "", "", "the control plane is stopping").WithHint("try again in a moment")
	}
	a.sessions.Add(1)
	return nil
}

// GetHealth says that the control plane serves.
func (a *API) GetHealth(context.Context, v1.GetHealthRequestObject) (v1.GetHealthResponseObject, error) {
	return v1.GetHealth200JSONResponse{Status: "ok", Version: a.version}, nil
}
