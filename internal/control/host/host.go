// Package host is the control plane's view of the machines it uses: for now the one local
// host, whose agent answers at a fixed address. What changes rarely (cores, memory) is
// cached, so that a create does not wait for doctor's checks.
package host

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

// LocalID is the id of the one host.
const LocalID = "local"

const (
	factsFor  = time.Minute
	seenEvery = time.Minute
)

// Service asks the host about itself.
type Service struct {
	store  *store.Store
	client hostv1connect.HostServiceClient
	log    *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	facts   *hostv1.GetHostResponse
	factsAt time.Time
	seenAt  time.Time
}

// New makes a Service.
func New(s *store.Store, client hostv1connect.HostServiceClient, log *slog.Logger, now func() time.Time) *Service {
	return &Service{store: s, client: client, log: log, now: now}
}

// Register makes the local host's row. It does not need the agent.
func (s *Service) Register(ctx context.Context) error {
	if _, err := s.store.Host(ctx, LocalID); !fault.Is(err, fault.NotFound) {
		return err
	}
	return s.store.PutHost(ctx, &store.Host{ID: LocalID, CreatedAt: store.At(s.now())})
}

// Get asks the host about itself now, and records that it was seen.
func (s *Service) Get(ctx context.Context) (*hostv1.GetHostResponse, error) {
	resp, err := s.client.GetHost(ctx, connect.NewRequest(&hostv1.GetHostRequest{}))
	if err != nil {
		return nil, CallError(err, "ask", "host")
	}
	s.remember(ctx, resp.Msg)
	return resp.Msg, nil
}

// Facts is Get, at most a minute old.
func (s *Service) Facts(ctx context.Context) (*hostv1.GetHostResponse, error) {
	s.mu.Lock()
	facts, age := s.facts, s.now().Sub(s.factsAt)
	s.mu.Unlock()
	if facts != nil && age < factsFor {
		return facts, nil
	}
	return s.Get(ctx)
}

// remember caches the facts and, once a minute, writes that the host was seen.
func (s *Service) remember(ctx context.Context, facts *hostv1.GetHostResponse) {
	now := s.now()
	s.mu.Lock()
	s.facts, s.factsAt = facts, now
	write := now.Sub(s.seenAt) >= seenEvery
	if write {
		s.seenAt = now
	}
	s.mu.Unlock()
	if !write {
		return
	}
	row := &store.Host{ID: LocalID, Hostname: facts.GetHostname(), CreatedAt: store.At(now), SeenAt: store.At(now)}
	if err := s.store.PutHost(ctx, row); err != nil && ctx.Err() == nil {
		s.log.Warn("host not recorded as seen", "host_id", LocalID, "error", err)
	}
}
