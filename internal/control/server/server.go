// Package server puts the control plane together: the store, its services, the reconciler
// and the HTTP API, as one lifecycle.Service.
//
// Stop refuses new requests, closes WebSocket sessions (their processes go on), gives
// running requests a grace, cancels what is left and waits until every claimed row is
// settled or reverted. Sandboxes are left as they are.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/api"
	"github.com/roosthq/roost/internal/control/apikey"
	"github.com/roosthq/roost/internal/control/guestproxy"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/leak"
	"github.com/roosthq/roost/internal/control/reconcile"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/lifecycle"
	"github.com/roosthq/roost/internal/undo"
)

const (
	readHeaderLimit = 10 * time.Second
	idleLimit       = 2 * time.Minute
	maxHeader       = 64 << 10
	defaultGrace    = 10 * time.Second
)

// Config of a Server. Fields without a stated default are required.
type Config struct {
	// DataDir holds the database file, roost.db (0600).
	DataDir string
	// Listener to serve on; it is closed with the server. Without one, Listen is bound.
	Listener net.Listener
	// Listen is a TCP address, e.g. "127.0.0.1:7070".
	Listen string
	// Host is the agent's RPC.
	Host hostv1connect.HostServiceClient
	// ProxyBase is the agent's base URL, below which /sandboxes/{id}/guest/ leads to guests.
	ProxyBase string
	// ProxyTransport reaches ProxyBase. Default: http.DefaultTransport.
	ProxyTransport http.RoundTripper
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Now; default time.Now.
	Now func() time.Time
	// Version that /health shows.
	Version string
	// ReconcileEvery; default 5 s.
	ReconcileEvery time.Duration
	// Grace of running requests at Stop; default 10 s.
	Grace time.Duration
}

// Validate names the first field that cannot be used.
func (c *Config) Validate() error {
	switch {
	case c.DataDir == "":
		return fault.New(fault.Invalid, "configure", "control plane", "DataDir is empty")
	case c.Listener == nil && c.Listen == "":
		return fault.New(fault.Invalid, "configure", "control plane", "Listen is empty and there is no Listener")
	case c.Host == nil:
		return fault.New(fault.Invalid, "configure", "control plane", "Host is nil")
	case c.ProxyBase == "":
		return fault.New(fault.Invalid, "configure", "control plane", "ProxyBase is empty")
	case c.ReconcileEvery < 0 || c.Grace < 0:
		return fault.New(fault.Invalid, "configure", "control plane",
			fmt.Sprintf("ReconcileEvery %s and Grace %s must not be negative", c.ReconcileEvery, c.Grace))
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.ProxyTransport == nil {
		c.ProxyTransport = http.DefaultTransport
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
}

// Server is the control plane.
type Server struct {
	lifecycle.Base
	config Config

	mu       sync.Mutex
	firstKey string
	addr     net.Addr
	stop     undo.Stack
	ended    bool
}

var _ lifecycle.Service = (*Server)(nil)

// New makes a Server.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.setDefaults()
	return &Server{config: c}, nil
}

// FirstKey is the secret of the API key that this start made, "" when there was one before.
func (s *Server) FirstKey() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.firstKey
}

// Addr is where the server listens, nil before Start.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Start returns when requests are answered. The host agent need not run yet.
func (s *Server) Start(ctx context.Context) error {
	run, ok, err := s.Begin(ctx)
	if !ok || err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.start(ctx, run); err != nil {
		return errors.Join(err, s.stop.Rollback(ctx))
	}
	return nil
}

// start builds from the store up; each part's end is pushed for Stop.
func (s *Server) start(ctx, run context.Context) error {
	c := s.config
	l, err := s.listen(ctx) // before the first key is made: a key must not be lost to a taken port
	if err != nil {
		return err
	}
	db, err := store.OpenSQLite(ctx, filepath.Join(c.DataDir, store.FileName))
	if err != nil {
		return err
	}
	s.stop.Push("close database", func(context.Context) error { return db.Close() })
	hosts := host.New(db, c.Host, c.Logger, c.Now)
	if err := hosts.Register(ctx); err != nil {
		return err
	}
	keys := apikey.New(db, c.Logger, c.Now)
	if s.firstKey, err = keys.First(ctx); err != nil {
		return err
	}
	templates := template.New(db, c.Host, c.Logger, c.Now)
	s.pushEnd("finish deletes of templates", templates.Stop)
	sandboxes := sandbox.New(sandbox.Config{Store: db, Client: c.Host, Templates: templates, Hosts: hosts,
		Logger: c.Logger, Now: c.Now})
	s.pushEnd("finish changes", sandboxes.Close)
	loop := reconcile.New(reconcile.Config{Store: db, Client: c.Host, Sandboxes: sandboxes,
		Templates: templates, Logger: c.Logger, Now: c.Now, Interval: c.ReconcileEvery})
	if err := loop.Start(run); err != nil {
		return err
	}
	s.pushEnd("stop reconciler", loop.Stop)
	handler := api.New(api.Config{Sandboxes: sandboxes, Templates: templates, Keys: keys, Hosts: hosts,
		Leaks:  leak.New(db, c.Host, templates),
		Guests: guestproxy.New(c.ProxyBase, c.ProxyTransport), Logger: c.Logger, Version: c.Version})
	s.serve(l, handler)
	return nil
}

func (s *Server) pushEnd(name string, end func()) {
	s.stop.Push(name, func(context.Context) error { end(); return nil })
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	l := s.config.Listener
	if l == nil {
		var lc net.ListenConfig
		var err error
		if l, err = lc.Listen(ctx, "tcp", s.config.Listen); err != nil {
			return nil, fault.Wrap(err, "listen on", s.config.Listen)
		}
	}
	s.stop.Push("close listener", func(context.Context) error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return l, nil
}

// serve answers until Stop.
func (s *Server) serve(l net.Listener, handler *api.API) {
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: readHeaderLimit, IdleTimeout: idleLimit, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug),
	}
	s.addr = l.Addr()
	s.stop.Push("stop serving", func(ctx context.Context) error { return s.shutdown(ctx, srv, handler) })
	s.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.config.Logger.Error("control plane stopped serving", "address", l.Addr().String(), "error", err)
		}
	})
}

// shutdown lets running requests end within the grace, and then ends them.
func (s *Server) shutdown(ctx context.Context, srv *http.Server, handler *api.API) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.Grace)
	defer cancel()
	sessions := make(chan struct{})
	go func() { defer close(sessions); handler.Close() }()
	err := srv.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.config.Logger.Warn("requests did not end within the grace; cancelling them", "grace", s.config.Grace)
		err = srv.Close()
	}
	<-sessions
	return err
}

// Stop ends everything that Start began.
func (s *Server) Stop() {
	s.mu.Lock()
	if !s.ended {
		s.ended = true
		if err := s.stop.Rollback(context.Background()); err != nil {
			s.config.Logger.Error("control plane did not stop cleanly", "error", err)
		}
	}
	s.mu.Unlock()
	s.Base.Stop()
}
