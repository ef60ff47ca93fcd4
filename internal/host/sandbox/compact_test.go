package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// deep makes a paused sandbox whose capture is as deep as it may be, without anything that merges.
func deep(t *testing.T, h *host, name string) {
	t.Helper()
	h.almostDeep(name)
	h.Runtime.On("compact", func(context.Context) error { return errors.New("not now") })
	h.pause(name)
	require.Len(t, h.saved(name, 7).Disk, 8)
}

// almostDeep makes a running sandbox whose next pause is too deep.
func (h *host) almostDeep(name string) {
	h.t.Helper()
	h.create(name)
	h.Runtime.Note(h.uid(name), "kept")
	for range 6 {
		h.pause(name)
		h.resume(name)
	}
}

// isShallow says whether it is known that the capture needs no merging.
func (s *Sandbox) isShallow() bool {
	s.gate <- struct{}{}
	defer func() { <-s.gate }()
	return s.shallow == s.journal().Capture
}

func merged(files []string) bool {
	return slices.ContainsFunc(files, func(f string) bool { return filepath.Base(f)[:4] == "merg" })
}

// A capture that is too deep to open is merged while its sandbox is paused.
func TestDeepCapturesAreMergedInTheBackground(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := id("a")
	deep(t, h, a)
	before := h.saved(a, 7).Disk
	require.NoError(t, h.m.collect(t.Context()))
	require.Equal(t, before, h.saved(a, 7).Disk, "what cannot be merged stays")
	require.Equal(t, Paused, h.state(a))
	h.Runtime.On("compact", nil)
	soon(t, "it is merged", func() bool {
		require.NoError(t, h.m.collect(t.Context())) // which passes by what the pause's own merging is at
		return merged(h.saved(a, 7).Disk)
	})
	require.Less(t, len(h.saved(a, 7).Disk), 4)
	soon(t, "what it was made of is gone", func() bool { return len(h.files("sandboxes/*/disk/*")) == 1 })
	soon(t, "that is noted", func() bool { require.NoError(t, h.m.collect(t.Context())); return h.sandbox(a).isShallow() })
	h.Runtime.On("compact", func(context.Context) error { t.Error("it is shallow"); return nil })
	require.NoError(t, h.m.collect(t.Context()))
	h.Runtime.On("compact", nil)
	h.resume(a)
	require.Equal(t, "kept", h.notes(a))
}

// The pause that made it deep starts the merging; nobody has to ask.
func TestAPauseMerges(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := id("a")
	h.almostDeep(a)
	h.pause(a)
	soon(t, "it is merged", func() bool { return merged(h.saved(a, 7).Disk) })
	h.resume(a)
	require.Equal(t, "kept", h.notes(a))
}

// A resume does not wait for the background: that gives up, and leaves nothing.
func TestAResumeInterruptsMerging(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(*host){
		"resume": func(h *host) { h.resume(id("a")); require.Equal(h.t, "kept", h.notes(id("a"))) },
		"rm":     func(h *host) { h.destroy(id("a")); h.empty() },
		"stop":   func(h *host) { h.restart(); h.resume(id("a")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, sandboxtest.VM)
			a := id("a")
			deep(t, h, a)
			step, arrived, _ := arrival()
			h.Runtime.On("compact", func(ctx context.Context) error {
				stray := filepath.Join(h.Data.Sandbox(a).Disk(), "merged-99.tmp")
				first := true
				select {
				case <-arrived:
					first = false
				default:
					require.NoError(t, os.WriteFile(stray, nil, 0o600))
				}
				err := step(ctx)
				if first {
					require.Error(t, err, "it was interrupted")
				}
				return err
			})
			h.m.compactSoon(h.sandbox(a))
			wait(t, arrived)
			next(h)
			require.Empty(t, h.files("sandboxes/*/disk/merged-99.tmp"))
		})
	}
}
