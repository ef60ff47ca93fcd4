package host

import (
	"context"
	"time"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

const (
	// Attempts of a call that nobody answers.
	Attempts  = 3
	firstWait = 100 * time.Millisecond
)

// Repeat tries a call to the agent again while nobody answers. The call must be one that may
// be repeated: it reads, is idempotent, or carries an operation id.
func Repeat[T any](ctx context.Context, call func() (T, error)) (T, error) {
	wait := firstWait
	for try := 1; ; try++ {
		out, err := call()
		if !fault.Is(err, fault.Unavailable) || try == Attempts {
			return out, err
		}
		select {
		case <-ctx.Done():
			return out, err
		case <-time.After(wait):
			wait *= 3
		}
	}
}

// CallError is err of an RPC to the agent, its kind kept, with a hint when nobody answered.
func CallError(err error, op, object string) error {
	f := fault.Wrap(fault.FromConnect(err), op, object)
	if fault.Is(f, fault.Unavailable) && fault.HintOf(f) == "" {
		return &fault.Error{Kind: fault.Unavailable, Op: op, Object: object, Err: fault.FromConnect(err),
			Hint: "is the host agent running? `roost doctor` says what is wrong"}
	}
	return f
}

// Phases of a report as rows hold them.
func Phases(in []*hostv1.Phase) []store.Phase {
	out := make([]store.Phase, len(in))
	for i, p := range in {
		out[i] = store.Phase{Name: p.GetName(), Microseconds: p.GetDuration().AsDuration().Microseconds()}
	}
	return out
}
