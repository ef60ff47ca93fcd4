package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A pause that is published is completed, also when what it could not end stops going on.
func TestAPublishedPauseWhoseProcessStops(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Note(h.uid(a), "kept")
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{})
		require.ErrorContains(t, err, "it does not die")
		h.Runtime.Halt(h.uid(a), stoppedByASignal)
		soon(t, "the pause is completed", func() bool { return h.state(a) != Pausing })
		require.Equal(t, Paused, h.state(a))
		h.resume(a)
		h.remembers(a, "kept")
		h.pause(a)
	})
}

// A wish to delete is never taken back, whatever becomes of what has to end for it.
func TestADestroyWhoseProcessStops(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		require.Error(t, h.m.Destroy(t.Context(), Operation{}, a))
		s := h.sandbox(a)
		require.Error(t, h.m.fail(t.Context(), s, "for a test"))
		require.Equal(t, Destroying, s.journal().State)
		h.Runtime.Halt(h.uid(a), stoppedByASignal)
		soon(t, "it is destroyed", func() bool { return len(h.m.List()) == 0 })
		_, leave, err := s.enter(t.Context()) // it is forgotten before its directory is gone
		require.NoError(t, err)
		leave()
		h.empty()
	})
}

// What dies in the middle of a pause has no save that anybody could take for a published one.
func TestWhatDiesHasNoUnnamedSave(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.Runtime.Fail("stop", 1, errors.New("it does not die"))
		_, err := h.m.Pause(t.Context(), Operation{}, a, PauseOptions{})
		require.Error(t, err)
		s := h.sandbox(a)
		ctx, leave, err := s.enter(t.Context())
		require.NoError(t, err)
		require.NoError(t, h.m.fail(ctx, s, "for a test"))
		leave()
		require.Empty(t, h.files("sandboxes/*/captures/*"))
		require.Empty(t, h.files("sandboxes/*/captures/.tmp*"))
	})
}

// A directory that no journal ever named as a save is in nobody's way, and is never taken for one.
func TestALeftoverIsNoSave(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a := id("a")
		h.create(a)
		h.pause(a)
		h.resume(a)
		h.Runtime.Note(h.uid(a), "kept")
		dir := h.Data.Sandbox(a)
		require.NoError(t, os.CopyFS(dir.Capture(2), os.DirFS(dir.Capture(1))))
		require.NoError(t, os.WriteFile(filepath.Join(dir.Capture(2), "old"), nil, 0o600))
		h.Runtime.On("capture", func(context.Context) error {
			if _, err := os.Stat(dir.Capture(2)); err == nil {
				return errors.New("an agent that dies now leaves what the next one takes for a save")
			}
			return nil
		})
		h.pause(a)
		require.NoFileExists(t, filepath.Join(dir.Capture(2), "old"))
		h.resume(a)
		h.remembers(a, "kept")
		h.noLeaks()

		// One that comes up while it is saved.
		h.Runtime.On("capture", func(context.Context) error {
			return os.CopyFS(dir.Capture(3), os.DirFS(dir.Capture(2)))
		})
		h.pause(a)
		h.resume(a)
		h.remembers(a, "kept")
		h.noLeaks()
	})
}

// A capture that is taken back is taken back on the disk too, before the sandbox runs on.
func TestACaptureTakenBackIsSynced(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := id("a")
	h.create(a)
	s := h.sandbox(a)
	require.NoError(t, os.Mkdir(s.dir.Capture(1), 0o700))
	require.NoError(t, s.update(false, func(j *journal) { j.State, j.Pending = Pausing, 1 }))
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, s.dir.Captures(), unix.IN_MOVED_TO|unix.IN_OPEN)
	require.NoError(t, err)
	require.NoError(t, h.m.unpublish(s))
	require.Equal(t, []uint32{unix.IN_MOVED_TO | unix.IN_ISDIR, unix.IN_OPEN | unix.IN_ISDIR}, events(t, fd),
		"renamed, and then opened to be synced")
	require.DirExists(t, s.dir.CaptureStage(1))
	require.NoError(t, h.m.finish(t.Context(), s))
	h.answers(a)
}

// events are what an inotify descriptor has seen.
func events(t *testing.T, fd int) (masks []uint32) {
	t.Helper()
	raw := make([]byte, 4096)
	n, err := unix.Read(fd, raw)
	require.NoError(t, err)
	for at := 0; at < n; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&raw[at]))
		masks = append(masks, e.Mask)
		at += unix.SizeofInotifyEvent + int(e.Len)
	}
	return masks
}
