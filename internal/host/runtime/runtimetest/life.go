package runtimetest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/runtime"
)

// testBoot: a cold boot answers, is what it was asked to be, and can be captured.
func (s *suite) testBoot(t *testing.T) {
	b := s.newBox(t)
	b.spec.Resources.DiskSizeMB = 96
	b.boot(runtime.BootOptions{})
	b.introduce()
	b.thawGuest()
	require.Equal(t, b.spec.ID, b.sh("hostname"))
	require.Equal(t, b.spec.ID, b.sh("echo $BOX"))
	require.Equal(t, "user", b.sh("su user -c 'id -un'"))
	b.sizeIs(96)
	tick := b.tick()
	c := b.pause(runtime.CaptureOptions{})
	next := b.again()
	next.start(c)
	next.goesOn(tick, next.ticks(tick))
}

// sizeIs checks the disk that the guest sees: as large as asked, less what a file system needs
// for itself.
func (b *box) sizeIs(mb int) {
	b.Helper()
	have := b.rootMB()
	require.LessOrEqual(b, have, mb)
	require.GreaterOrEqual(b, have, mb*3/4)
}

// testPauseResume: the same processes, with their state, and the same files.
func (s *suite) testPauseResume(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	b.sh("echo kept >/root/file; mkdir /root/dir; ln -s file /root/link; chmod 640 /root/file; chown 1000:1000 /root/file")
	b.sh("echo volatile >/dev/shm/file")
	c := b.pause(runtime.CaptureOptions{})
	exit := b.awaitExit()
	require.True(t, exit.Requested)
	b.nothingRuns()

	next := b.again()
	next.restore(c)
	facts := next.introduce()
	require.NotEmpty(t, facts.BootID)
	at := next.ticks(tick)
	require.Positive(t, at)
	require.Equal(t, at, next.ticks(tick), "nothing runs before the guest's thaw")
	next.thawGuest()
	next.goesOn(tick, at)
	require.Equal(t, "sh", next.sh("cat /proc/%d/comm", tick.pid), "the same process")
	require.Equal(t, "kept", next.sh(uncached+"cat /root/link"))
	require.Equal(t, "640 1000 1000", next.sh("stat -c '%%a %%u %%g' /root/file"))
	require.Equal(t, "volatile", next.sh("cat /dev/shm/file"))
	require.Equal(t, next.spec.ID, next.sh("echo $BOX"), "the environment of the handshake")
	isNow(t, next.sh("date +%%s"))
}

// isNow checks a guest's clock, as far as it can be once the answer is here.
func isNow(t testing.TB, seconds string) {
	t.Helper()
	guest, err := strconv.ParseInt(seconds, 10, 64)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), time.Unix(guest, 0), limit)
}

// testFreezeHolds: from Freeze to Thaw nothing of the user's runs, whatever the runtime keeps
// running, and a copy goes on from the moment of the capture. What a process wrote is read
// through the guest agent before the guest's thaw, so no tick can hide.
func (s *suite) testFreezeHolds(t *testing.T) {
	b := s.fresh(t)
	tick := b.tick()
	b.freeze()
	require.NoError(t, b.in.Freeze(b.ctx()), "idempotent")
	c := b.capture(runtime.CaptureOptions{})

	require.NoError(t, b.in.Thaw(b.ctx()))
	require.NoError(t, b.in.Thaw(b.ctx()), "idempotent")
	copied := s.newBox(t)
	copied.restore(c)
	copied.introduce()
	at := copied.ticks(tick)
	require.Positive(t, at)
	require.Equal(t, at, b.ticks(tick), "it ticked between Freeze and the guest's thaw")
	b.thawGuest()
	b.goesOn(tick, at)
	copied.thawGuest()
	copied.goesOn(tick, at)

	for range 3 { // without a capture in between
		b.freeze()
		before := b.ticksFrozen(tick)
		b.thawGuest()
		b.goesOn(tick, before)
	}
}

// ticksFrozen thaws the runtime alone and reads the ticker.
func (b *box) ticksFrozen(t ticker) int {
	b.Helper()
	require.NoError(b, b.in.Thaw(b.ctx()))
	return b.ticks(t)
}

// testStates: what is refused, what may be repeated.
func (s *suite) testStates(t *testing.T) {
	b := s.fresh(t)
	dir := filepath.Join(t.TempDir(), "capture")
	require.NoError(t, os.Mkdir(dir, 0o700))
	_, _, err := b.in.Capture(b.ctx(), dir, runtime.CaptureOptions{})
	require.Error(t, err, "a capture needs a frozen instance")
	require.Equal(t, "runs", b.sh("echo runs"))

	record, err := b.in.Record()
	require.NoError(t, err)
	require.NotEmpty(t, record)
	select {
	case <-b.in.Exited():
		require.Fail(t, "it runs, and says that it has ended")
	default:
	}
	b.stop()
	exit := b.awaitExit()
	require.True(t, exit.Requested)
	require.WithinDuration(t, time.Now(), exit.At, limit)
	require.NoError(t, b.in.Stop(t.Context()), "idempotent")
	require.Error(t, b.in.Freeze(t.Context()), "what is gone cannot be frozen")
	require.Error(t, b.in.Thaw(t.Context()))
	_, _, err = b.in.Capture(t.Context(), t.TempDir(), runtime.CaptureOptions{})
	require.Error(t, err)
}

// testStop: Stop is legal in every state.
func (s *suite) testStop(t *testing.T) {
	tpl := s.template(t)
	for name, bring := range map[string]func(*box){
		"restored":   func(b *box) { b.restoreOnly(tpl) },
		"thawed":     func(b *box) { b.restore(tpl) },
		"running":    func(b *box) { b.start(tpl) },
		"quiesced":   func(b *box) { b.start(tpl); require.NoError(t, b.guest.Freeze(b.ctx(), freezeSync)) },
		"frozen":     func(b *box) { b.start(tpl); b.freeze() },
		"captured":   func(b *box) { b.start(tpl); b.freeze(); b.capture(runtime.CaptureOptions{}) },
		"thawed on":  func(b *box) { b.start(tpl); b.freeze(); b.capture(runtime.CaptureOptions{}); b.thaw() },
		"terminated": func(b *box) { b.start(tpl); b.kill() },
	} {
		b := s.newBox(t)
		bring(b)
		require.NoError(t, b.in.Stop(t.Context()), name)
		require.NotEmpty(t, b.awaitExit().Reason, name)
		b.nothingRuns()
		require.NoError(t, b.in.Stop(t.Context()), name)
	}
}

// restoreOnly leaves the instance as Restore gave it.
func (b *box) restoreOnly(from saved) {
	b.Helper()
	in, err := b.rt.Restore(b.ctx(), b.spec, from.Capture)
	require.NoError(b, err)
	b.in = in
}

// files are the regular files below the box's disk directory.
func (b *box) files() []string {
	b.Helper()
	return filesBelow(b, b.spec.DiskDir)
}

func filesBelow(t testing.TB, dir string) []string {
	t.Helper()
	out := []string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	require.NoError(t, err)
	return out
}
