package runtimetest

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/uids"
)

// kill ends the sandbox's processes from outside.
func (b *box) kill() {
	b.Helper()
	b.guest.Close()
	require.NoError(b, uids.Kill(b.Context(), b.spec.UID))
}

// signal sends one to all of the sandbox's processes.
func (b *box) signal(sig unix.Signal) {
	b.Helper()
	for _, pid := range ofUID(b, b.spec.UID) {
		if err := unix.Kill(pid, sig); !errors.Is(err, unix.ESRCH) {
			require.NoError(b, err)
		}
	}
}

// testKilled: an end from outside is seen, and is not one that was asked for.
func (s *suite) testKilled(t *testing.T) {
	b := s.fresh(t)
	b.kill()
	exit := b.awaitExit()
	require.False(t, exit.Requested)
	require.Contains(t, exit.Reason, "killed")
	require.False(t, exit.At.IsZero())
	b.nothingRuns()
}

// testGuestEnds: the guest agent's end is the sandbox's, and the reason says so.
func (s *suite) testGuestEnds(t *testing.T) {
	b := s.fresh(t)
	_, _, _ = b.try(b.ctx(), "kill -ABRT 1") // ends with its connection
	exit := b.awaitExit()
	require.False(t, exit.Requested)
	require.Contains(t, exit.Reason, "guest")
	text, err := b.rt.ConsoleOf(b.spec)
	require.NoError(t, err)
	require.Contains(t, string(text), "SIGABRT", "the guest agent's last words")
}

// testConsole: what PID 1 prints is kept, bounded, after the end too; printing without end
// fills nothing and stops nobody.
func (s *suite) testConsole(t *testing.T) {
	const bound, lines = 1 << 20, 17_500 // somewhat more than is kept
	b := s.fresh(t)
	b.sh("echo first words >/proc/1/fd/1")
	b.await("the first words", func() bool { return b.said("first words") })
	line := strings.Repeat("x", 60)
	b.sh("yes %s | head -n %d >/proc/1/fd/1; echo last words >/proc/1/fd/1", line, lines)
	b.await("the last words", func() bool { return b.said("last words") })
	text, err := b.in.Console()
	require.NoError(t, err)
	require.LessOrEqual(t, len(text), bound)
	require.Greater(t, len(text), 16<<10)
	var size int64
	for _, f := range filesBelow(t, b.spec.RunDir) {
		size += allocatedBytes(t, b.spec.RunDir+"/"+f)
	}
	require.LessOrEqual(t, size, int64(bound+16<<20), "beside an initramfs, say")

	b.adopt(b.record()) // its readers change
	b.sh("echo words to the next >/proc/1/fd/1")
	b.await("words to the next", func() bool { return b.said("words to the next") })
	b.stop()
	require.True(t, b.said("words to the next"), "kept after the end")
}

// said tells whether the kept console has a text.
func (b *box) said(words string) bool {
	b.Helper()
	text, err := b.rt.ConsoleOf(b.spec)
	require.NoError(b, err)
	return strings.Contains(string(text), words)
}
