package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

const (
	ndjson = "application/x-ndjson"
	// progressKept is how many steps wait for a slow client before some are dropped.
	progressKept = 64
	writeLimit   = 30 * time.Second
)

func requestOf(ctx context.Context) *http.Request {
	r, _ := ctx.Value(keyOfRequest).(*http.Request)
	return r
}

// wantsLines says that a client takes progress.
func wantsLines(ctx context.Context) bool {
	return strings.Contains(requestOf(ctx).Header.Get("Accept"), ndjson)
}

// event is one line: exactly one of progress, result and error.
type event[T any] func(progress *v1.Progress, result *T, err *v1.Error) any

// work is what is followed; it tells its steps.
type work[T any] func(progress func(step, detail string)) (T, error)

type result[T any] struct {
	value T
	err   error
}

// lines is work that runs, its steps and its end.
type lines[T any] struct {
	ctx   context.Context
	event event[T]
	steps chan v1.Progress
	first *v1.Progress
	end   chan result[T]
}

// follow starts work and waits for its first sign: an error before any progress still has
// its own HTTP status.
func follow[T any](ctx context.Context, a *API, ev event[T], do work[T]) (*lines[T], error) {
	l := &lines[T]{ctx: ctx, event: ev, steps: make(chan v1.Progress, progressKept), end: make(chan result[T], 1)}
	progress := func(step, detail string) {
		select {
		case l.steps <- v1.Progress{Step: step, Detail: optional(detail)}:
		default: // a slow client must not hold up the host
		}
	}
	go func() {
		// Not under the handler's recover.
		defer func() {
			if p := recover(); p != nil {
				l.end <- result[T]{err: a.panicked(p)}
			}
		}()
		value, err := do(progress)
		l.end <- result[T]{value, err}
	}()
	select {
	case step := <-l.steps:
		l.first = &step
	case e := <-l.end:
		if e.err != nil && len(l.steps) == 0 {
			return nil, e.err
		}
		l.end <- e
	}
	return l, nil
}

// write writes the lines. It stays until the work has ended, also when its client left: its
// row is then settled, or taken back.
func (l *lines[T]) write(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", ndjson)
	w.WriteHeader(http.StatusCreated)
	if l.first != nil {
		l.line(w, l.event(l.first, nil, nil))
	}
	for {
		select {
		case step := <-l.steps:
			l.line(w, l.event(&step, nil, nil))
		case e := <-l.end:
			for len(l.steps) > 0 {
				step := <-l.steps
				l.line(w, l.event(&step, nil, nil))
			}
			if e.err != nil {
				p := problem(e.err)
				l.line(w, l.event(nil, nil, &p))
			} else {
				l.line(w, l.event(nil, &e.value, nil))
			}
			return nil
		}
	}
}

// line writes one line at once. Its failure is the client's leaving, which ends l.ctx.
func (l *lines[T]) line(w http.ResponseWriter, ev any) {
	if l.ctx.Err() != nil {
		return
	}
	conn := http.NewResponseController(w)
	_ = conn.SetWriteDeadline(time.Now().Add(writeLimit))
	_ = json.NewEncoder(w).Encode(ev)
	_ = conn.Flush()
	_ = conn.SetWriteDeadline(time.Time{})
}
