package restore

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/activity"
	"github.com/roosthq/roost/internal/guest/cgroup"
	"github.com/roosthq/roost/internal/guest/identity"
)

// TokenHeader carries the control token.
const TokenHeader = "X-Control-Token"

const (
	freezeTimeout      = 10 * time.Second
	defaultSyncTimeout = 10 * time.Second
)

// Config is what the service works on.
type Config struct {
	Identity *identity.Identity
	Tree     *cgroup.Tree
	Users    account.Database
	Activity *activity.Clock
	System   System
	// Root is where etc and run are; "/" in a sandbox.
	Root string
	// Device holds the root file system.
	Device string
	// Version of this binary.
	Version string
	// DropOthers closes every connection but the one of ctx.
	DropOthers func(ctx context.Context)
	// RunHelper runs a program to its end, outside the user's cgroup. Nil: no host keys are made.
	RunHelper func(ctx context.Context, argv ...string) error
}

// Service serves Control.
type Service struct {
	Config
	mu     sync.Mutex
	frozen bool
	// waiting: the life that has begun was not thawed yet.
	waiting  bool
	stepped  time.Duration // of the last Restore
	reseeded bool
}

// NewService makes the service of a fresh guest: its user processes are frozen from here on.
func NewService(ctx context.Context, c Config) (*Service, error) {
	if err := c.Tree.Freeze(ctx); err != nil {
		return nil, err
	}
	return &Service{Config: c, frozen: true}, nil
}

// Freeze stops user processes and, unless told not to, syncs the root file system.
func (s *Service) Freeze(ctx context.Context, req *connect.Request[pb.FreezeRequest]) (*connect.Response[pb.FreezeResponse], error) {
	if err := s.authorize(req.Header()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.frozen
	err := s.freeze(ctx)
	if err == nil && !req.Msg.GetSkipSync() {
		err = s.sync(ctx, time.Duration(req.Msg.GetSyncTimeoutMs())*time.Millisecond)
	}
	if err != nil {
		if !was {
			s.thaw()
		}
		return nil, err
	}
	return connect.NewResponse(&pb.FreezeResponse{Processes: uint32(s.Tree.Processes())}), nil
}

func (s *Service) freeze(ctx context.Context) error {
	if s.frozen {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if err := s.Tree.Freeze(ctx); err != nil {
		return err
	}
	s.frozen = true
	return nil
}

func (s *Service) thaw() {
	if s.Tree.Thaw() == nil {
		s.frozen = false
	}
}

// sync cannot be interrupted; when it takes too long it goes on by itself.
func (s *Service) sync(ctx context.Context, timeout time.Duration) error {
	if timeout <= 0 {
		timeout = defaultSyncTimeout
	}
	done := make(chan error, 1)
	go func() { done <- s.System.Sync(s.Root) }()
	select {
	case err := <-done:
		return err
	case <-time.After(timeout):
		return fault.New(fault.DeadlineExceeded, "sync", s.Root, "the disk did not take all writes in "+timeout.String())
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "sync", s.Root)
	}
}

// Thaw lets user processes run.
func (s *Service) Thaw(_ context.Context, req *connect.Request[pb.ThawRequest]) (*connect.Response[pb.ThawResponse], error) {
	if err := s.authorize(req.Header()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	life, restored := s.Identity.Current()
	if !restored || life.Generation != req.Msg.GetGeneration() {
		return nil, fault.New(fault.FailedPrecondition, "thaw", "sandbox", "this generation was not restored").
			WithHint("Send Restore first.")
	}
	answer := &pb.ThawResponse{}
	if ns := req.Msg.GetWallClockNs(); ns != 0 {
		if err := s.setClock(time.Unix(0, ns)); err != nil {
			return nil, err
		}
		answer.ClockNs = time.Now().UnixNano()
	}
	if err := s.Tree.Thaw(); err != nil {
		return nil, err
	}
	s.frozen, s.waiting = false, false
	s.Identity.Thawed()
	s.Activity.Touch()
	return connect.NewResponse(answer), nil
}

// Grow makes the root file system fill its device.
func (s *Service) Grow(_ context.Context, req *connect.Request[pb.GrowRequest]) (*connect.Response[pb.GrowResponse], error) {
	if err := s.authorize(req.Header()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.System.Grow(s.Root, s.Device); err != nil {
		return nil, err
	}
	total, _, err := diskUse(s.Root)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.GrowResponse{RootBytes: int64(total)}), nil
}

// authorize: the server has refused strangers; here the superseded token, which Restore
// accepts, is refused too.
func (s *Service) authorize(h interface{ Get(string) string }) error {
	if !s.Identity.Control(h.Get(TokenHeader)) {
		return fault.New(fault.Unauthenticated, "", "", "the control token is not the current one")
	}
	return nil
}
