package restore

import (
	"fmt"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// hostClockTolerance is how far a clock that cannot be set may be from what the host sent: the
// time on the way, on a busy machine, and no more.
const hostClockTolerance = 5 * time.Second

// Sentry is the System of gVisor, whose kernel takes time and randomness from the host's.
type Sentry struct{ shared }

// SetClock cannot set the clock, which is the host's. It measures, and refuses to call a clock
// right that is not: a sentry that has lost the host's time must not be served.
func (Sentry) SetClock(t time.Time) (time.Duration, error) {
	off := ahead(t)
	if off.Abs() <= hostClockTolerance {
		return 0, nil
	}
	return 0, fault.New(fault.FailedPrecondition, "set", "clock",
		fmt.Sprintf("gVisor's clock is the host's, and it is off by %v", off.Round(time.Millisecond))).
		WithHint("Look at the host's clock: the control plane's machine and this host must agree on the time.")
}

// AddEntropy has nothing to do: every read of the random source is one of the host's, which no
// checkpoint holds.
func (Sentry) AddEntropy([]byte) error { return nil }

// Grow has no device to fill: the disk has the size of its checkpoint.
func (Sentry) Grow(string, string) error { return nil }

// Process is the System of an ordinary process, which leaves the machine around it alone: the
// warm-up, and a guest that is not PID 1.
type Process struct{ Sentry }

// SetHostname leaves the host name.
func (Process) SetHostname(string) error { return nil }
