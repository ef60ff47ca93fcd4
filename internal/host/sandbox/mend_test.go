package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// breakJournal damages a sandbox's journal while no agent runs.
func (h *host) breakJournal(name string) {
	h.t.Helper()
	require.NoError(h.t, os.WriteFile(h.Data.Sandbox(name).Journal(), []byte("{"), 0o600))
}

// Somebody's data is not thrown away because its journal cannot be read: what was saved is paused.
func TestDamagedJournal(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		req := request(a)
		req.Envs, req.IdleTimeout = map[string]string{"A": "b"}, 1000
		_, err := h.m.Create(t.Context(), Operation{}, req, nil)
		require.NoError(t, err)
		h.Runtime.Note(h.uid(a), "kept")
		h.pause(a)
		before := h.sandbox(a).journal()
		h.stop()
		h.breakJournal(a)
		require.NoError(t, os.Mkdir(h.Data.Sandbox(b).String(), 0o700))
		other := filepath.Join(h.Data.Sandboxes(), "lost+found")
		require.NoError(t, os.Mkdir(other, 0o700))
		h.Connect()
		h.start()
		v, err := h.m.Get(a)
		require.NoError(t, err)
		require.Equal(t, Paused, v.State)
		require.Contains(t, v.Reason, "journal was damaged")
		require.Contains(t, v.Reason, "what came later is lost")
		require.Greater(t, v.Generation, before.Generation+100, "no row takes it for older than what it knows")
		require.Equal(t, before.Envs, v.Envs)
		require.Equal(t, before.IdleTimeout, v.IdleTimeout)
		require.Equal(t, before.Resources, v.Resources)
		require.Equal(t, before.TemplateName, v.Template)
		require.Equal(t, before.Isolation, v.Isolation)
		require.NotEqual(t, before.AccessToken, h.sandbox(a).journal().AccessToken)
		_, err = h.m.Get(b)
		require.Equal(t, fault.NotFound, fault.KindOf(err), "a create that never got so far")
		require.NoDirExists(t, h.Data.Sandbox(b).String())
		require.DirExists(t, other)
		h.restart()
		require.Equal(t, v.Generation, h.sandbox(a).journal().Generation, "it is written down")
		h.resume(a)
		text, err := h.get(a, "/notes")
		require.NoError(t, err)
		require.Equal(t, "kept", text)
		h.pause(a)
		h.resume(a)
		h.destroy(a)
		require.NoError(t, os.Remove(other))
		h.restart()
		h.empty()
	})
}

// One that ran when its journal was lost ends first, and then is as it was last saved.
func TestDamagedJournalOfOneThatRan(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b := id("a"), id("b")
		h.create(a)
		h.create(b)
		h.Runtime.Note(h.uid(a), "saved")
		h.pause(a)
		h.resume(a)
		h.Runtime.Note(h.uid(a), "not saved")
		ghost := sleeper(t, h.uid(a))
		h.stop()
		h.Runtime.Kill(h.uid(a), "it is nobody's") // its uid's processes are: that is what the fake is not
		h.breakJournal(a)
		h.breakJournal(b)
		h.Connect()
		h.start()
		require.Error(t, ghost.Wait(), "what may have been of it was killed")
		require.Equal(t, Paused, h.state(a))
		require.Equal(t, Failed, h.state(b), "nothing was saved of it")
		v, err := h.m.Get(b)
		require.NoError(t, err)
		require.Contains(t, v.Reason, "journal is damaged")
		h.resume(a)
		text, err := h.get(a, "/notes")
		require.NoError(t, err)
		require.Equal(t, "saved", text)
		_, err = h.m.Resume(t.Context(), Operation{}, b, ResumeOptions{Cold: true})
		require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		require.Contains(t, fault.HintOf(err), "roost rm "+b)
		for _, uid := range h.Runtime.Running() {
			if uid != h.uid(a) {
				h.Runtime.Kill(uid, "the test is over")
			}
		}
	})
}

// A damaged journal with a damaged capture is a failed sandbox, whose files stay.
func TestDamagedJournalAndCapture(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		for name, damage := range map[string]func(dir string) error{
			id("a"): func(dir string) error { return os.WriteFile(filepath.Join(dir, "manifest.json"), []byte("x"), 0o600) },
			id("b"): func(dir string) error { return os.Remove(filepath.Join(dir, "memory.layer")) },
			id("c"): func(dir string) error { return os.RemoveAll(dir) },
		} {
			h.create(name)
			h.pause(name)
			h.stop()
			h.breakJournal(name)
			require.NoError(t, damage(h.Data.Sandbox(name).Capture(1)))
			h.Connect()
			h.start()
			require.Equal(t, Failed, h.state(name), name)
			require.DirExists(t, h.Data.Sandbox(name).String())
			require.DirExists(t, h.Data.Sandbox(name).Disk())
			h.destroy(name)
		}
		h.empty()
	})
}
