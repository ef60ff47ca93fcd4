package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/sandbox"
	"github.com/roosthq/roost/internal/lifecycle"
)

// Server serves the agent's RPC on a unix socket.
type Server struct {
	lifecycle.Base
	socket string
	http   *http.Server
	log    *slog.Logger
}

// Config of a Server; all fields are required.
type Config struct {
	Socket    string
	Sandboxes *sandbox.Manager
	Images    *image.Store
	Host      HostInfo
	Logger    *slog.Logger
}

// NewServer makes a server; nothing listens before Start.
func NewServer(cfg Config) *Server {
	mux := http.NewServeMux()
	mux.Handle(hostv1connect.NewHostServiceHandler(&service{
		sandboxes: cfg.Sandboxes, images: cfg.Images, host: cfg.Host,
	}))
	mux.Handle(guestPattern, &guestProxy{sandboxes: cfg.Sandboxes, log: cfg.Logger})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &Server{
		socket: cfg.Socket, log: cfg.Logger.With("component", "agent"),
		http: &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second},
	}
}

// Start listens. The socket of an agent that was killed is replaced; the caller holds the
// installation's lock, so no other agent can be using it.
func (s *Server) Start(ctx context.Context) error {
	run, ok, err := s.Begin(ctx)
	if err != nil || !ok {
		return err
	}
	l, err := listen(ctx, s.socket)
	if err != nil {
		s.Base.Stop() // a second Start must not say that it runs
		return err
	}
	s.http.BaseContext = func(net.Listener) context.Context { return run }
	s.Go(func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("serve", "error", err)
		}
	})
	return nil
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(err, "replace", "agent socket")
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fault.Wrap(err, "listen on", "agent socket")
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(fault.Wrap(err, "protect", "agent socket"), l.Close())
	}
	return l, nil
}

// drain is how long Stop waits for requests to end by themselves.
const drain = 2 * time.Second

// Stop ends the server; streams to guests are cut, the guests run on.
func (s *Server) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close()
	}
	s.Base.Stop()
}
