package main

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/roosthq/roost/internal/host/runtime"
)

// lazy is a runtime that is made at its first use: one that nobody may ask for shall not cost
// every start. What it is, is known before.
type lazy struct {
	name      string
	isolation runtime.Isolation
	caps      runtime.Capabilities
	open      func(context.Context) (runtime.Runtime, error)

	mu sync.Mutex
	rt runtime.Runtime
}

var (
	_ runtime.Runtime = (*lazy)(nil)
	_ runtime.Trimmer = (*lazy)(nil)
)

// get makes the runtime; a failure is tried again by the next use.
func (l *lazy) get(ctx context.Context) (runtime.Runtime, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rt != nil {
		return l.rt, nil
	}
	rt, err := l.open(ctx)
	if err == nil {
		l.rt = rt
	}
	return rt, err
}

func (l *lazy) Name() string                       { return l.name }
func (l *lazy) Isolation() runtime.Isolation       { return l.isolation }
func (l *lazy) Capabilities() runtime.Capabilities { return l.caps }

// Identity is empty when the runtime cannot be made; whoever goes on to start something is told
// why.
func (l *lazy) Identity() map[string]string {
	rt, err := l.get(context.Background())
	if err != nil {
		return nil
	}
	return rt.Identity()
}

func (l *lazy) Boot(ctx context.Context, spec runtime.Spec, opts runtime.BootOptions) (runtime.Instance, error) {
	rt, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return rt.Boot(ctx, spec, opts)
}

func (l *lazy) Restore(ctx context.Context, spec runtime.Spec, from runtime.Capture) (runtime.Instance, error) {
	rt, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return rt.Restore(ctx, spec, from)
}

func (l *lazy) Adopt(ctx context.Context, spec runtime.Spec, record json.RawMessage) (runtime.Instance, error) {
	rt, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return rt.Adopt(ctx, spec, record)
}

func (l *lazy) Discard(ctx context.Context, spec runtime.Spec) error {
	rt, err := l.get(ctx)
	if err != nil {
		return err
	}
	return rt.Discard(ctx, spec)
}

func (l *lazy) Reap(ctx context.Context, spec runtime.Spec) error {
	rt, err := l.get(ctx)
	if err != nil {
		return err
	}
	return rt.Reap(ctx, spec)
}

func (l *lazy) Compact(ctx context.Context, spec runtime.Spec, c runtime.Capture) (json.RawMessage, bool, error) {
	rt, err := l.get(ctx)
	if err != nil {
		return nil, false, err
	}
	return rt.Compact(ctx, spec, c)
}

func (l *lazy) ConsoleOf(spec runtime.Spec) ([]byte, error) {
	rt, err := l.get(context.Background())
	if err != nil {
		return nil, err
	}
	return rt.ConsoleOf(spec)
}

func (l *lazy) Files(c runtime.Capture) ([]string, error) {
	rt, err := l.get(context.Background())
	if err != nil {
		return nil, err
	}
	return rt.Files(c)
}

func (l *lazy) Link(ctx context.Context, c runtime.Capture, dir, root string) (json.RawMessage, error) {
	rt, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return rt.Link(ctx, c, dir, root)
}

func (l *lazy) Salvage(ctx context.Context, spec runtime.Spec, record json.RawMessage, dir string) (json.RawMessage, error) {
	rt, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return rt.Salvage(ctx, spec, record, dir)
}

// Trim has nothing to give back before the first use.
func (l *lazy) Trim(idle time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, is := l.rt.(runtime.Trimmer); is {
		return t.Trim(idle)
	}
	return nil
}
