package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// sweeps says whether the files of templates that have no name could be removed now.
func (h *host) sweeps() bool {
	ok := h.m.making.TryLock()
	if ok {
		h.m.making.Unlock()
	}
	return ok
}

// A template's boot that nobody waits for any more still stands on the template's files.
func TestABootKeepsItsTemplate(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		step, arrived, leave := arrival()
		h.Runtime.On("boot", step)
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error)
		go func() {
			_, err := h.m.Create(ctx, Operation{}, request(id("a")), nil)
			errs <- err
		}()
		wait(t, arrived)
		cancel()
		require.Equal(t, fault.Canceled, fault.KindOf(wait(t, errs)))
		require.False(t, h.sweeps())
		close(leave)
		soon(t, "the boot is over", h.sweeps)
		h.create(id("a"))
	})
}

// The build that something in the making was saved in stays, whatever has become of its source.
func TestWhatIsInTheMakingKeepsItsBuild(t *testing.T) {
	t.Parallel()
	h := newHost(t, sandboxtest.Sentry)
	a := id("a")
	h.Runtime.Upgrade("one")
	h.create(a)
	build := filepath.Join(string(h.Data), "builds", h.Runtime.Name(), "one")
	require.FileExists(t, build)
	step, arrived, leave := arrival()
	h.Runtime.On("boot", step)
	errs := make(chan error)
	go func() {
		_, _, err := h.m.CreateTemplate(t.Context(), Operation{}, TemplateRequest{Name: "made", Sandbox: a}, func(string, string) {})
		errs <- err
	}()
	wait(t, arrived)
	h.destroy(a)
	h.Runtime.Upgrade("two")
	require.NoError(t, h.m.retire())
	require.FileExists(t, build)
	close(leave)
	require.Error(t, wait(t, errs), "the fake's guest gives out no files")
	require.NoError(t, h.m.retire())
	require.NoFileExists(t, build)
	h.empty()
}

// A directory without a journal that holds somebody's data is not thrown away.
func TestMissingJournal(t *testing.T) {
	onEach(t, func(t *testing.T, h *host) {
		a, b, c := id("a"), id("b"), id("c")
		h.create(a)
		h.create(b)
		h.Runtime.Note(h.uid(a), "kept")
		h.pause(a)
		h.stop()
		h.Runtime.Kill(h.uid(b), "killed")
		for _, name := range []string{a, b} {
			require.NoError(t, os.Remove(h.Data.Sandbox(name).Journal()))
		}
		require.NoError(t, makeDirs(h.Data.Sandbox(c)))
		h.Connect()
		h.start()
		require.Equal(t, Paused, h.state(a))
		require.Contains(t, h.sandbox(a).journal().Reason, "journal")
		h.resume(a)
		h.remembers(a, "kept")
		require.Equal(t, Failed, h.state(b), "nothing was saved of it; its disk stays")
		require.NotEmpty(t, h.files("sandboxes/"+b+"/disk/*"))
		require.NoDirExists(t, h.Data.Sandbox(c).String(), "a create that never got so far")
		h.destroy(a)
		h.destroy(b)
		h.empty()
	})
}
