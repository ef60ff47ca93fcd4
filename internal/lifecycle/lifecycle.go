// Package lifecycle is the one contract of everything that runs: Start returns when the
// service serves, Stop when it has ended; both are safe twice, and Stop before Start.
package lifecycle

import (
	"context"
	"errors"
	"sync"
)

// Service is something that runs until it is stopped.
type Service interface {
	Start(ctx context.Context) error
	Stop()
}

// Base gives a type Start-once and Stop-once; embed it and call Begin from Start.
type Base struct {
	mu      sync.Mutex
	run     context.Context
	cancel  context.CancelFunc
	stopped bool
	wg      sync.WaitGroup
}

// ErrStopped says that a service was started after it was stopped.
var ErrStopped = errors.New("service was stopped")

// Begin makes the context that ends with Stop. ok is false when the service runs already.
func (b *Base) Begin(ctx context.Context) (run context.Context, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return nil, false, ErrStopped
	}
	if b.cancel != nil {
		return nil, false, nil
	}
	b.run, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return b.run, true, nil
}

// Done is closed when Stop was called; nil (never) before Begin.
func (b *Base) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run == nil {
		return nil
	}
	return b.run.Done()
}

// Call begins work that somebody asks for. Its context ends with ctx and with Stop (cause
// ErrStopped); Stop waits until done is called. A stopped service takes no more calls.
func (b *Base) Call(ctx context.Context) (_ context.Context, done func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return nil, nil, ErrStopped
	}
	b.wg.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := func() bool { return true }
	if b.run != nil {
		unhook = context.AfterFunc(b.run, func() { cancel(ErrStopped) })
	}
	return ctx, sync.OnceFunc(func() {
		unhook()
		cancel(nil)
		b.wg.Done()
	}), nil
}

// Go runs f in a goroutine that Stop waits for.
func (b *Base) Go(f func()) { b.wg.Go(f) }

// Stop cancels the service's context and waits for its goroutines and calls.
func (b *Base) Stop() {
	b.mu.Lock()
	b.stopped = true
	if b.cancel != nil {
		b.cancel()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

// StartAll starts services in order; when one fails, the started ones are stopped.
func StartAll(ctx context.Context, services ...Service) error {
	for i, s := range services {
		if err := s.Start(ctx); err != nil {
			StopAll(services[:i]...)
			return err
		}
	}
	return nil
}

// StopAll stops services, last started first.
func StopAll(services ...Service) {
	for i := len(services) - 1; i >= 0; i-- {
		services[i].Stop()
	}
}
