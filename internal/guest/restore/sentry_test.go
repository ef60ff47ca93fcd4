package restore

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/guesttest"
)

func TestSentryRefusesAClockThatIsNotRight(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{0, hostClockTolerance / 2, -hostClockTolerance / 2} {
		moved, err := Sentry{}.SetClock(time.Now().Add(off))
		require.NoError(t, err)
		require.Zero(t, moved, "it never moves the clock")
	}
	for _, off := range []time.Duration{2 * hostClockTolerance, -2 * hostClockTolerance, -time.Hour} {
		_, err := Sentry{}.SetClock(time.Now().Add(off))
		require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
		require.ErrorContains(t, err, "off by")
		require.NotEmpty(t, fault.HintOf(err))
	}
}

func TestProcessLeavesTheHostName(t *testing.T) {
	t.Parallel()
	before, err := os.Hostname()
	require.NoError(t, err)
	require.NoError(t, Process{}.SetHostname("somebody-else"))
	after, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// In gVisor the kernel's own clock cannot be set, and its host name can.
func TestSentryInGVisor(t *testing.T) {
	t.Parallel()
	if !guesttest.InGVisor(t) {
		t.Skip("this kernel is not gVisor's: TestGuestInGVisor runs it there")
	}
	_, err := Kernel{}.SetClock(time.Now().Add(time.Hour))
	require.Error(t, err)
	require.NoError(t, Sentry{}.SetHostname("sentry"))
	name, err := Sentry{}.Hostname()
	require.NoError(t, err)
	require.Equal(t, "sentry", name)
	require.NoError(t, Sentry{}.Sync("/"))
}
