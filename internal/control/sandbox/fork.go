package sandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

const (
	maxForks      = 64
	destroyAtOnce = 8
)

// ForkRequest says what to make of a sandbox.
type ForkRequest struct {
	Count int
	// IdleTimeoutS and Metadata are the source's when nil; Env is added to the source's.
	IdleTimeoutS *int
	Env          map[string]string
	Metadata     map[string]string
}

func (r *ForkRequest) validate() error {
	checks := []error{within("count", r.Count, 1, maxForks), checkIdle(r.IdleTimeoutS), CheckEnv(r.Env), checkMetadata(r.Metadata)}
	for _, err := range checks {
		if err != nil {
			return err
		}
	}
	return nil
}

// Forked is what became of a fork.
type Forked struct {
	Sandboxes []*store.Sandbox
	// Frozen is how long the source stood still.
	Frozen time.Duration
	Phases []store.Phase
}

// Fork makes sandboxes with the memory and disk of one that runs or is paused: all or none.
// The source is marked by a claim, and the new rows are there, before the host is called.
// A client that leaves takes the forks back, for nobody could learn their ids.
func (s *Service) Fork(ctx context.Context, id string, r ForkRequest) (*Forked, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.running.Done()
	f := &fork{service: s, source: id, request: r, client: ctx}
	_, err := s.change(ctx, verbFork, id, f.prepare, f.call)
	switch {
	case f.rows == nil:
		return nil, err
	case f.made != nil: // also when the source was deleted meanwhile
		return f.settle(ctx)
	case ctx.Err() != nil:
		err = errors.Join(fault.New(fault.Canceled, "fork", "sandbox "+id, "the client went away"), err)
	}
	return nil, errors.Join(err, f.abandon(ctx, err))
}

// fork is one Fork that runs.
type fork struct {
	service *Service
	source  string
	request ForkRequest
	client  context.Context
	rows    []*store.Sandbox
	made    *hostv1.ForkSandboxResponse
}

// prepare makes the rows, all of them or none, once.
func (f *fork) prepare(ctx context.Context, source *store.Sandbox) error {
	if f.rows != nil { // the source's row was behind its host, and this is the second try
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap(err, "fork", "sandbox "+f.source)
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	rows := make([]*store.Sandbox, f.request.Count)
	for i := range rows {
		rows[i] = f.row(source)
	}
	if err := f.service.store.AddSandboxes(ctx, rows); err != nil {
		return err
	}
	f.rows = rows
	return nil
}

func (f *fork) row(source *store.Sandbox) *store.Sandbox {
	now := store.At(f.service.now())
	row := &store.Sandbox{
		ID: store.NewID(), HostID: source.HostID, Template: source.Template, TemplateID: source.TemplateID,
		ForkedFrom: source.ID, Runtime: source.Runtime, Isolation: source.Isolation, VCPUs: source.VCPUs,
		MemoryMB: source.MemoryMB, DiskSizeMB: source.DiskSizeMB, IdleTimeoutS: source.IdleTimeoutS,
		Metadata: source.Metadata, Generation: 1, Version: 1, CreatedAt: now, ActiveAt: now,
	}
	if f.request.IdleTimeoutS != nil {
		row.IdleTimeoutS = *f.request.IdleTimeoutS
	}
	if f.request.Metadata != nil {
		row.Metadata = f.request.Metadata
	}
	f.service.stamp(verbCreate, row)
	// As long as the source's claim, and from later on: never over before it.
	row.ClaimDeadline = store.At(f.service.now().Add(f.service.limit(verbFork)))
	return row
}

// call is one ForkSandbox. The operations of the forks stay the same, whatever the source's.
func (f *fork) call(ctx context.Context, op *hostv1.Operation) (*hostv1.Sandbox, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(f.client, cancel)
	defer stop()
	req := &hostv1.ForkSandboxRequest{Operation: op, SandboxId: f.source, Envs: f.request.Env}
	for _, row := range f.rows {
		req.Forks = append(req.Forks, &hostv1.Fork{OperationId: row.ClaimID, SandboxId: row.ID})
	}
	if f.request.IdleTimeoutS != nil {
		req.IdleTimeout = durationpb.New(time.Duration(*f.request.IdleTimeoutS) * time.Second)
	}
	resp, err := f.service.client.ForkSandbox(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	if len(resp.Msg.GetSandboxes()) != len(f.rows) {
		return nil, fault.New(fault.Internal, "", "", "the host's answer has not all of the forks")
	}
	f.made = resp.Msg
	return resp.Msg.GetSource(), nil
}

// settle lets the rows take what the host has made, in one transaction. A fork that was
// deleted meanwhile is taken from the host again, and shown as it is.
func (f *fork) settle(ctx context.Context) (*Forked, error) {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	s := f.service
	reports := map[string]*hostv1.Sandbox{}
	for _, sb := range f.made.GetSandboxes() {
		reports[sb.GetId()] = sb
	}
	swaps := make([]store.Swap, len(f.rows))
	out := &Forked{Sandboxes: make([]*store.Sandbox, len(f.rows)), Frozen: f.made.GetFrozen().AsDuration(),
		Phases: host.Phases(f.made.GetPhases())}
	for i, row := range f.rows {
		next := row.Copy()
		next.State = store.Running
		takeReport(next, reports[row.ID])
		next.ClaimID, next.ClaimDeadline = "", 0
		swaps[i], out.Sandboxes[i] = store.Swap{Seen: row, Next: next}, next
	}
	n, err := s.Apply(ctx, swaps)
	if err != nil || n == len(swaps) {
		return out, err
	}
	for i, row := range f.rows {
		now, err := s.store.Sandbox(ctx, row.ID)
		if err != nil {
			return nil, err
		}
		if out.Sandboxes[i] = now; now.State == store.Deleted {
			if err := s.DestroyLeftover(ctx, now); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// abandon takes all forks back.
func (f *fork) abandon(ctx context.Context, cause error) error {
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		errs []error
	)
	slots := make(chan struct{}, destroyAtOnce)
	for _, row := range f.rows {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := f.service.takeBack(ctx, verbFork, row, cause); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
