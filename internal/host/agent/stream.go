package agent

import (
	"sync"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
)

// progress sends steps on a stream and at last what came of them.
type progress[T any] struct {
	stream *connect.ServerStream[T]
	wrap   func(*hostv1.Progress) *T
	mu     sync.Mutex
}

func sender[T any](stream *connect.ServerStream[T], wrap func(*hostv1.Progress) *T) *progress[T] {
	return &progress[T]{stream: stream, wrap: wrap}
}

// progress is for whoever still listens: that a caller is gone is noticed by its context.
func (p *progress[T]) progress(step, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.stream.Send(p.wrap(&hostv1.Progress{Step: step, Detail: detail}))
}

func (p *progress[T]) last(out *T) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stream.Send(out)
}
