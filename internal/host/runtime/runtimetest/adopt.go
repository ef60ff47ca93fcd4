package runtimetest

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// adopt lets go of the instance and has another Runtime value take it over.
func (b *box) adopt(record json.RawMessage) {
	b.Helper()
	b.guest.CloseIdle()
	b.in.Detach()
	b.in.Detach()
	b.rt = b.s.New(b)
	in, err := b.rt.Adopt(b.Context(), b.spec, record)
	require.NoError(b, err)
	b.in = in
}

func (b *box) record() json.RawMessage {
	b.Helper()
	record, err := b.in.Record()
	require.NoError(b, err)
	return record
}

// testAdopt: an agent that was restarted finds the sandbox running, and it is in hand as before.
func (s *suite) testAdopt(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	b.adopt(b.record())
	b.goesOn(tick, b.ticks(tick))
	usage, err := b.in.Usage()
	require.NoError(t, err)
	require.Positive(t, usage.MemoryBytes)
	b.adopt(b.record()) // and once more
	c := b.pause(runtime.CaptureOptions{})
	require.True(t, b.awaitExit().Requested)
	next := b.again()
	next.rt = b.rt
	next.start(c)
	next.goesOn(tick, next.ticks(tick))

	next.adopt(next.record())
	next.kill()
	exit := next.awaitExit()
	require.False(t, exit.Requested)
	require.NotEmpty(t, exit.Reason)
}

// testAdoptCaptured: an agent may die at any moment of a pause, or after a snapshot, with the
// record in its journal that it wrote at the start.
func (s *suite) testAdoptCaptured(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	old := b.record()
	b.freeze()
	b.adopt(old) // dead before the capture
	b.thaw()
	b.goesOn(tick, b.ticks(tick))

	b.sh("echo first >/root/file")
	b.freeze()
	first := b.capture(runtime.CaptureOptions{})
	unchanged := b.keeps(first)
	b.adopt(old) // dead after it
	at := b.ticksFrozen(tick)
	b.thawGuest()
	b.sh("echo second >/root/file; sync")
	b.goesOn(tick, at)
	unchanged()

	b.adopt(old) // dead after the snapshot
	b.sh("echo third >/root/file; sync")
	b.freeze()
	second := b.capture(runtime.CaptureOptions{})
	b.adopt(b.record())
	b.stop() // dead between a pause's publishing and its end
	unchanged()
	for content, c := range map[string]saved{"first": first, "third": second} {
		copied := s.newBox(t)
		copied.start(c)
		require.Equal(t, content, copied.sh(uncached+"cat /root/file"))
		copied.goesOn(tick, copied.ticks(tick))
	}
}

// testAdoptGone: what is gone is not found.
func (s *suite) testAdoptGone(t *testing.T) {
	b := s.fresh(t)
	record := b.record()
	b.guest.Close()
	b.in.Detach()
	require.NoError(t, b.rt.Reap(t.Context(), b.spec))
	other := s.New(t)
	_, err := other.Adopt(t.Context(), b.spec, record)
	refused(t, err, fault.NotFound)
	b.in = nil
	_, err = other.Adopt(t.Context(), b.spec, []byte("{"))
	require.Error(t, err)
}
