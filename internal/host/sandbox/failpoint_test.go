//go:build failpoints

package sandbox

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// TestStepsThatFail makes each step of what happens to a sandbox after its creation fail: the
// state is a right one, nothing is left, and the next try works. That the agent dies there is
// tested with the real binary.
func TestStepsThatFail(t *testing.T) { //nolint:paralleltest // sets the environment
	for _, c := range []struct {
		op, point string
		want      State // "" is gone
	}{
		{"pause", "sandbox.pause.marked", Running},
		{"pause", "sandbox.pause.quiesced", Running},
		{"pause", "sandbox.pause.frozen", Running},
		{"pause", "sandbox.pause.captured", Running},
		{"pause", "sandbox.pause.manifest", Running},
		{"pause", "sandbox.pause.renamed", Running},
		{"pause", "sandbox.pause.published", Pausing},
		{"pause", "sandbox.pause.stopped", Pausing},
		{"pause", "sandbox.pause.written", Paused},
		{"pause", "sandbox.pause.released", Paused},
		{"resume", "sandbox.resume.marked", Paused},
		{"resume", "sandbox.start.acquired", Paused},
		{"resume", "sandbox.start.launched", Paused},
		{"resume", "sandbox.start.greeted", Paused},
		{"resume", "sandbox.resume.started", Paused},
		{"rescue", "sandbox.rescue.salvaged", Failed},
		{"rescue", "sandbox.rescue.published", Paused},
		{"rescue", "sandbox.rescue.marked", Paused},
		{"rescue", "sandbox.resume.marked", Paused},
		{"rescue", "sandbox.resume.started", Paused},
		{"rm", "sandbox.destroy.marked", Destroying},
		{"rm", "sandbox.destroy.stopped", Destroying},
		{"rm", "sandbox.destroy.renamed", Destroying},
		{"rm", "sandbox.destroy.released", Destroying},
	} {
		t.Run(c.op+" "+c.point, func(t *testing.T) {
			h := newHost(t, sandboxtest.VM)
			a := id("a")
			h.create(a)
			h.Runtime.Note(h.uid(a), "kept")
			try := h.operation(c.op, a)
			t.Setenv("ROOST_FAILPOINTS", c.point+"=error")
			require.ErrorContains(t, try(), c.point)
			require.Equal(t, c.want, h.state(a))
			t.Setenv("ROOST_FAILPOINTS", "")
			require.NoError(t, h.m.collect(t.Context()))
			if c.op == "rm" {
				require.NoError(t, try())
				require.Empty(t, h.Slots())
				require.Empty(t, h.Runtime.Running())
				require.Empty(t, h.m.List())
				h.leaks(true)
				h.empty()
				return
			}
			h.noLeaks()
			require.NoError(t, try())
			if c.op == "pause" {
				h.resume(a)
			}
			h.answers(a)
			if c.op != "rescue" {
				require.Equal(t, "kept", h.notes(a))
			}
			h.noLeaks()
			h.destroy(a)
			h.empty()
		})
	}
}

// operation prepares a running sandbox for an operation and returns that.
func (h *host) operation(op, name string) func() error {
	ctx := h.t.Context()
	switch op {
	case "pause":
		return func() error { _, err := h.m.Pause(ctx, Operation{}, name, PauseOptions{}); return err }
	case "rm":
		return func() error { return h.m.Destroy(ctx, Operation{}, name) }
	case "resume":
		h.pause(name)
		return func() error { _, err := h.m.Resume(ctx, Operation{}, name, ResumeOptions{}); return err }
	default:
		h.fails(name)
		return func() error { _, err := h.m.Resume(ctx, Operation{}, name, cold); return err }
	}
}
