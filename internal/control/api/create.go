package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/sandbox"
)

const (
	ndjson = "application/x-ndjson"
	// progressKept is how many steps wait for a slow client before some are dropped.
	progressKept = 64
	writeLimit   = 30 * time.Second
)

// CreateSandbox makes a sandbox, with progress when the client takes lines.
func (a *API) CreateSandbox(ctx context.Context, r v1.CreateSandboxRequestObject) (v1.CreateSandboxResponseObject, error) {
	req := sandbox.Request{Spec: specOf(r.Body), Owner: apiKey(ctx).ID, Key: or(r.Params.IdempotencyKey, "")}
	if strings.Contains(requestOf(ctx).Header.Get("Accept"), ndjson) {
		return a.createStream(ctx, req)
	}
	row, err := a.sandboxes.Create(ctx, req)
	if err != nil {
		return nil, err
	}
	return v1.CreateSandbox201JSONResponse(sandboxOf(row)), nil
}

func requestOf(ctx context.Context) *http.Request {
	r, _ := ctx.Value(keyOfRequest).(*http.Request)
	return r
}

func specOf(b *v1.CreateSandbox) sandbox.Spec {
	return sandbox.Spec{
		Template:     or(b.Template, sandbox.DefaultTemplate),
		VCPUs:        or(b.Vcpus, sandbox.DefaultVCPUs),
		MemoryMB:     or(b.MemoryMb, sandbox.DefaultMemoryMB),
		DiskSizeMB:   or(b.DiskSizeMb, sandbox.DefaultDiskSizeMB),
		IdleTimeoutS: or(b.IdleTimeoutS, sandbox.DefaultIdleTimeout),
		Runtime:      or(b.Runtime, ""), Cold: or(b.Cold, false), Env: or(b.Env, nil), Metadata: or(b.Metadata, nil),
	}
}

type created struct {
	row *sandbox.Sandbox
	err error
}

// creation is a create that runs, and its steps.
type creation struct {
	ctx   context.Context
	steps chan v1.Progress
	first *v1.Progress
	end   chan created
}

// createStream starts a create and waits for its first sign: an error before any progress
// still has its own HTTP status.
func (a *API) createStream(ctx context.Context, req sandbox.Request) (v1.CreateSandboxResponseObject, error) {
	c := &creation{ctx: ctx, steps: make(chan v1.Progress, progressKept), end: make(chan created, 1)}
	req.Progress = func(step, detail string) {
		select {
		case c.steps <- v1.Progress{Step: step, Detail: optional(detail)}:
		default: // a slow client must not hold up the host
		}
	}
	go func() {
		// Not under the handler's recover.
		defer func() {
			if p := recover(); p != nil {
				c.end <- created{err: a.panicked(p)}
			}
		}()
		row, err := a.sandboxes.Create(ctx, req)
		c.end <- created{row, err}
	}()
	select {
	case step := <-c.steps:
		c.first = &step
	case e := <-c.end:
		if e.err != nil && len(c.steps) == 0 {
			return nil, e.err
		}
		c.end <- e
	}
	return c, nil
}

// VisitCreateSandboxResponse writes the lines. It stays until the create has ended, also
// when its client left: the row is then settled, or taken back.
func (c *creation) VisitCreateSandboxResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", ndjson)
	w.WriteHeader(http.StatusCreated)
	if c.first != nil {
		c.line(w, v1.CreateEvent{Progress: c.first})
	}
	for {
		select {
		case step := <-c.steps:
			c.line(w, v1.CreateEvent{Progress: &step})
		case e := <-c.end:
			for len(c.steps) > 0 {
				step := <-c.steps
				c.line(w, v1.CreateEvent{Progress: &step})
			}
			c.line(w, e.event())
			return nil
		}
	}
}

func (e created) event() v1.CreateEvent {
	if e.err != nil {
		p := problem(e.err)
		return v1.CreateEvent{Error: &p}
	}
	sb := sandboxOf(e.row)
	return v1.CreateEvent{Sandbox: &sb}
}

// line writes one line at once. Its failure is the client's leaving, which ends c.ctx.
func (c *creation) line(w http.ResponseWriter, ev v1.CreateEvent) {
	if c.ctx.Err() != nil {
		return
	}
	conn := http.NewResponseController(w)
	_ = conn.SetWriteDeadline(time.Now().Add(writeLimit))
	_ = json.NewEncoder(w).Encode(ev)
	_ = conn.Flush()
	_ = conn.SetWriteDeadline(time.Time{})
}
