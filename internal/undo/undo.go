// Package undo is a stack of steps that take back what a failed operation did. They run in
// reverse on a context that the caller's disconnect cannot cancel, bounded in time, and
// every step runs even when one before it fails.
package undo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Timeout bounds one Rollback.
const Timeout = 30 * time.Second

// Stack collects steps. The zero value is ready; it is not safe for concurrent use.
type Stack struct {
	steps []step
}

type step struct {
	name string
	run  func(context.Context) error
}

// Push adds a step, named for the error text.
func (s *Stack) Push(name string, run func(context.Context) error) {
	s.steps = append(s.steps, step{name, run})
}

// Discard forgets the steps: the operation was committed.
func (s *Stack) Discard() { s.steps = nil }

// Rollback runs the steps, last first, and joins their errors. It empties the stack.
func (s *Stack) Rollback(ctx context.Context) error {
	ctx, cancel := Context(ctx)
	defer cancel()
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		if err := s.steps[i].run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.steps[i].name, err))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}

// Context returns a context with ctx's values that only the Timeout ends: for cleanup.
func Context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), Timeout)
}
