package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// Request is one create. Key, when set, makes it idempotent for its owner, for a day.
type Request struct {
	Spec  Spec
	Owner string // the API key's id
	Key   string
	// Progress, when set, hears what the host does; it must not block.
	Progress func(step, detail string)
}

// Create makes a sandbox and returns when it takes commands. A request with a key that was
// used before returns the sandbox of the first request, waiting for it if need be.
func (s *Service) Create(ctx context.Context, r Request) (*store.Sandbox, error) {
	if len(r.Key) > maxIdemKey {
		return nil, invalid("Idempotency-Key", fmt.Sprintf("%d bytes", len(r.Key)), fmt.Sprintf("at most %d", maxIdemKey))
	}
	if err := r.Spec.validate(); err != nil {
		return nil, err
	}
	p, err := s.plan(ctx, &r.Spec)
	if err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.running.Done()
	mine, earlier, err := s.insert(ctx, r, p)
	switch {
	case err != nil:
		return nil, err
	case earlier != nil:
		return s.recall(ctx, r, earlier)
	}
	return s.boot(ctx, r, p, mine)
}

// insert makes the row, claimed.
func (s *Service) insert(ctx context.Context, r Request, p *plan) (*store.Sandbox, *store.Idempotency, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fault.Wrap(err, "create", "sandbox")
	}
	// As with take: a row must not be made for nobody.
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	now := s.now()
	row := newRow(p, now)
	s.stamp(verbCreate, row)
	var idem *store.Idempotency
	if r.Key != "" {
		idem = &store.Idempotency{APIKeyID: r.Owner, Key: r.Key, RequestHash: fingerprint(&r.Spec),
			SandboxID: row.ID, CreatedAt: store.At(now)}
	}
	earlier, err := s.store.AddSandbox(ctx, row, idem, now.Add(-KeepDeleted))
	return row, earlier, err
}

func newRow(p *plan, now time.Time) *store.Sandbox {
	return &store.Sandbox{
		ID: store.NewID(), HostID: host.LocalID, Template: p.template.Name, TemplateID: p.template.ID,
		Runtime: p.runtime, VCPUs: p.vcpus, MemoryMB: p.memoryMB, DiskSizeMB: p.diskMB,
		IdleTimeoutS: p.idleS, Metadata: p.metadata,
		Generation: 1, Version: 1, CreatedAt: store.At(now), ActiveAt: store.At(now),
	}
}

// fingerprint tells one request from another under the same key.
func fingerprint(spec *Spec) string {
	raw, _ := json.Marshal(spec) // maps are sorted; nothing in a Spec can fail
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// recall answers a repeated key.
func (s *Service) recall(ctx context.Context, r Request, earlier *store.Idempotency) (*store.Sandbox, error) {
	if earlier.RequestHash != fingerprint(&r.Spec) {
		return nil, invalid("Idempotency-Key", fmt.Sprintf("%q", clip(r.Key)), "it was used for a different request").
			WithHint("use a new key for a new sandbox")
	}
	row, err := s.store.Sandbox(ctx, earlier.SandboxID)
	if err != nil || !row.Claimed(s.now()) || row.State != store.Creating {
		return row, err
	}
	row, err = s.await(ctx, verbCreate, row)
	if err == nil && row.State == store.Deleted {
		return nil, fault.New(fault.Aborted, "create", "sandbox "+row.ID,
			"the first request of this Idempotency-Key failed"+because(row)).WithHint("try again")
	}
	return row, err
}

// boot calls the host and settles the row.
func (s *Service) boot(ctx context.Context, r Request, p *plan, mine *store.Sandbox) (*store.Sandbox, error) {
	calling, cancel := s.detach(ctx, verbCreate)
	defer cancel()
	if r.Key == "" {
		stop := context.AfterFunc(ctx, cancel)
		defer stop()
	}
	report, err := host.Repeat(calling, func() (*hostv1.Sandbox, error) { return s.callCreate(calling, r, p, mine) })
	if err == nil {
		next := mine.Copy()
		next.State = store.Running
		takeReport(next, report)
		if err = s.finish(ctx, verbCreate, mine, next); err == nil {
			return next, nil
		}
	} else {
		err = s.hostError(err, verbCreate, mine.ID)
		if ctx.Err() != nil && r.Key == "" {
			err = fault.New(fault.Canceled, "create", "sandbox "+mine.ID, "the client went away")
		}
	}
	return nil, errors.Join(err, s.abandon(ctx, mine, err))
}

// callCreate is one CreateSandbox: progress, then the sandbox.
func (s *Service) callCreate(ctx context.Context, r Request, p *plan, mine *store.Sandbox) (*hostv1.Sandbox, error) {
	stream, err := s.client.CreateSandbox(ctx, connect.NewRequest(createRequest(p, mine)))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var made *hostv1.Sandbox
	for stream.Receive() {
		msg := stream.Msg()
		if p := msg.GetProgress(); p != nil && r.Progress != nil {
			r.Progress(p.GetStep(), p.GetDetail())
		}
		if sb := msg.GetSandbox(); sb != nil {
			made = sb
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if made == nil {
		return nil, fault.New(fault.Unavailable, "", "", "the host's answer ended before the sandbox")
	}
	return made, nil
}

func createRequest(p *plan, mine *store.Sandbox) *hostv1.CreateSandboxRequest {
	return &hostv1.CreateSandboxRequest{
		Operation: &hostv1.Operation{OperationId: mine.ClaimID},
		SandboxId: mine.ID, Template: p.template.Name, SnapshotId: p.snapshotID, Runtime: p.runtime,
		Envs: p.env, Cold: p.cold,
		Resources: &hostv1.Resources{Vcpus: uint32(p.vcpus), MemoryMb: uint32(p.memoryMB),
			DiskSizeMb: uint32(p.diskMB)},
		IdleTimeout: durationpb.New(time.Duration(p.idleS) * time.Second),
	}
}

// abandon takes back a create that failed, or whose row a delete took while the host worked.
func (s *Service) abandon(ctx context.Context, mine *store.Sandbox, cause error) error {
	err := s.takeBack(ctx, verbCreate, mine, cause)
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	// A repeated request is to try again rather than be shown this failure.
	return errors.Join(err, s.store.ForgetIdempotency(ctx, mine.ID))
}

// takeBack destroys whatever the host has of a sandbox that is not to be; its row keeps the
// reason.
func (s *Service) takeBack(ctx context.Context, v verb, mine *store.Sandbox, cause error) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	next := mine.Copy()
	next.ClaimID, next.ClaimDeadline, next.Reason = "", 0, failure(v, cause)
	err := s.destroy(ctx, mine, store.NewID())
	if err != nil {
		// The reconciler repeats the destroy of a row in deleting.
		next.State = store.Deleting
	} else {
		bury(next, s.now())
	}
	if _, serr := s.store.Swap(ctx, mine, next); serr != nil {
		err = errors.Join(err, serr)
	}
	s.settled.notify(mine.ID)
	return err
}
