package runtimetest

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// testFailedCapture: what cannot be saved runs on, and is saved the next time.
func (s *suite) testFailedCapture(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	b.sh("dd if=/dev/urandom of=/dev/shm/weight bs=1M count=8 2>/dev/null; echo kept >/root/file")
	b.freeze()
	earlier := b.capture(runtime.CaptureOptions{})
	unchanged := b.keeps(earlier)
	b.thaw()
	b.sh("echo changed >/root/file; echo changed >/dev/shm/weight")
	full := filepath.Join(t.TempDir(), "full")
	require.NoError(t, os.Mkdir(full, 0o700))
	require.NoError(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=512k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(full, unix.MNT_DETACH)) })
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, try := range map[string]struct {
		ctx context.Context
		dir string
	}{
		"full":      {t.Context(), full},
		"gone":      {t.Context(), filepath.Join(full, "gone")},
		"cancelled": {cancelled, t.TempDir()},
	} {
		b.freeze()
		_, _, err := b.in.Capture(try.ctx, try.dir, runtime.CaptureOptions{Parent: &earlier.Capture})
		require.Error(t, err, name)
		unchanged()
		at := b.ticksFrozen(tick)
		require.Positive(t, at)
		b.thawGuest()
		b.goesOn(tick, at)
	}
	b.freeze()
	_, _, err := b.in.Capture(t.Context(), full, runtime.CaptureOptions{})
	require.Error(t, err)
	c := b.capture(runtime.CaptureOptions{}) // frozen still
	b.stop()
	next := b.again()
	next.start(c)
	next.goesOn(tick, next.ticks(tick))
	require.Equal(t, "changed", next.sh("cat /root/file"))
	copied := s.newBox(t) // the earlier one is as usable as ever
	copied.start(earlier)
	copied.goesOn(tick, copied.ticks(tick))
	require.Equal(t, "kept", copied.sh(uncached+"cat /root/file"))
}

// testOtherBuild: a capture that another build, machine or CPU has made is refused, whatever
// the record calls them.
func (s *suite) testOtherBuild(t *testing.T) {
	b := s.fresh(t)
	c := b.pause(runtime.CaptureOptions{})
	identity := b.rt.Identity()
	require.NotEmpty(t, identity["build"])
	require.NotEmpty(t, identity["machine"])
	for _, part := range []string{"build", "machine", "cpu"} {
		if identity[part] == "" {
			continue
		}
		var record any
		require.NoError(t, json.Unmarshal(c.Record, &record))
		record, found := replaced(record, identity[part], "0123456789abcdef")
		require.True(t, found, "the record does not name the %s", part)
		raw, err := json.Marshal(record)
		require.NoError(t, err)
		other := s.newBox(t)
		_, err = b.rt.Restore(b.ctx(), other.spec, runtime.Capture{Dir: c.Dir, Record: raw})
		refused(t, err, fault.FailedPrecondition)
		require.NotEmpty(t, fault.HintOf(err), part)
		require.Empty(t, other.files())
	}
	_, err := b.rt.Restore(b.ctx(), s.newBox(t).spec, runtime.Capture{Dir: c.Dir, Record: []byte("{")})
	require.Error(t, err)
	next := b.again()
	next.start(c)
}

// replaced exchanges a string wherever it is in a JSON value.
func replaced(v any, old, new string) (any, bool) {
	found := false
	replace := func(v any) any {
		out, ok := replaced(v, old, new)
		found = found || ok
		return out
	}
	switch v := v.(type) {
	case string:
		if v == old {
			return new, true
		}
	case []any:
		for i := range v {
			v[i] = replace(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = replace(v[k])
		}
	}
	return v, found
}

// testCancelled: a start that is given up at any moment leaves nothing.
func (s *suite) testCancelled(t *testing.T) {
	tpl := s.template(t)
	const times, longest = 10, 400 * time.Millisecond
	r := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	for i := range 2 * times {
		b := s.newBox(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.Int64N(int64(longest))))
		var err error
		if i%2 == 0 {
			b.bootable()
			b.in, err = b.rt.Boot(ctx, b.spec, runtime.BootOptions{})
		} else {
			b.in, err = b.rt.Restore(ctx, b.spec, tpl.Capture)
		}
		cancel()
		if err != nil {
			b.in = nil
		}
		b.end() // nothing runs
		require.Empty(t, b.files())
		b.in = nil
	}
}

// testDiscard: Discard and Reap may be repeated, come at any time, and leave what they shall.
func (s *suite) testDiscard(t *testing.T) {
	b := s.newBox(t)
	for range 2 { // nothing was ever made
		require.NoError(t, b.rt.Reap(t.Context(), b.spec))
		require.NoError(t, b.rt.Discard(t.Context(), b.spec))
	}
	b.start(s.template(t))
	b.sh("echo kept >/root/file; sync")
	b.guest.Close()
	files := b.files()
	require.NotEmpty(t, files)
	for range 2 {
		require.NoError(t, b.rt.Reap(t.Context(), b.spec))
		b.nothingRuns()
		require.Equal(t, files, b.files(), "Reap keeps files")
	}
	require.False(t, b.awaitExit().Requested)
	for range 2 {
		require.NoError(t, b.rt.Discard(t.Context(), b.spec))
		require.Empty(t, b.files())
	}

	captured := s.fresh(t)
	tick := captured.tick()
	captured.freeze()
	c := captured.capture(runtime.CaptureOptions{})
	captured.thaw()
	unchanged := captured.keeps(c)
	captured.guest.Close()
	for range 2 { // of one that runs, and that was captured
		require.NoError(t, captured.rt.Discard(t.Context(), captured.spec))
		captured.nothingRuns()
		unchanged()
	}
	next := captured.again()
	next.start(c)
	next.goesOn(tick, next.ticks(tick))
}
