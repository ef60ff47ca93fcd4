package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/lifecycle"
)

// errDestroyed ends a transition for a Destroy; errStopping says that the agent stops.
var (
	errDestroyed = fault.New(fault.Aborted, "", "", "the sandbox is being destroyed")
	errStopping  = fault.New(fault.Unavailable, "", "", "the host agent is stopping").
			WithHint("sandboxes run on; try again in a moment")
)

// explain says of an operation that was cut short what cut it: not "context canceled", but
// that the guest died, the agent stops or the sandbox is being destroyed.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, lifecycle.ErrStopped) {
		cause = errStopping
	}
	var why *fault.Error
	if !errors.As(cause, &why) || errors.Is(err, why) {
		return err
	}
	return &fault.Error{Kind: why.Kind, Err: fmt.Errorf("%w (%w)", why, err), Hint: why.Hint}
}

// classify gives a full disk its kind and says what to do.
func classify(err error, meanwhile string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &fault.Error{
			Kind: fault.ResourceExhausted, Err: err,
			Hint: "the host's disk is full; " + meanwhile + "free space and try again",
		}
	}
	return err
}
