package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// freezeSync bounds the guest's file system sync before a capture.
const freezeSync = 10 * time.Second

// PauseResult is a paused sandbox and what pausing cost.
type PauseResult struct {
	View
	BytesWritten int64
}

// Pause saves a sandbox and frees what it held. Pausing a paused one is done already.
func (m *Manager) Pause(ctx context.Context, op Operation, id, reason string) (PauseResult, error) {
	s, err := m.lookup(id)
	if err != nil {
		return PauseResult{}, err
	}
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return PauseResult{}, err
	}
	defer leave()
	j := s.journal()
	if j.did(op.ID) || j.State == Paused {
		return PauseResult{View: s.View()}, nil
	}
	if err := errors.Join(fence(j, op), need(id, j.State, Running, "pause")); err != nil {
		return PauseResult{}, err
	}
	written, err := m.pause(ctx, s, op, reason)
	if err != nil {
		return PauseResult{}, fault.Wrap(err, "pause", "sandbox "+id)
	}
	return PauseResult{View: s.View(), BytesWritten: written}, nil
}

func (m *Manager) pause(ctx context.Context, s *Sandbox, op Operation, reason string) (int64, error) {
	clock := newStopwatch()
	err := s.update(false, func(j *journal) {
		j.State, j.Pending = Pausing, j.Capture+1
	})
	if err != nil {
		return 0, err
	}
	written, err := m.captureSandbox(ctx, s, clock)
	if err != nil {
		return 0, m.abandonPause(ctx, s, err)
	}
	// Committed: from here on the pause only completes, whoever gives up waiting for it.
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return written, m.completePause(ctx, s, op, reason, clock)
}

// captureSandbox freezes the sandbox from the inside out and saves it. It returns after the
// capture was renamed into place, which is the commit.
func (m *Manager) captureSandbox(ctx context.Context, s *Sandbox, clock *stopwatch) (int64, error) {
	in, _, guest := s.parts()
	ctx = untilExit(ctx, in)
	if err := guest.Freeze(ctx, freezeSync); err != nil {
		return 0, err
	}
	guest.CloseIdle()
	clock.mark("quiesce")
	if err := errors.Join(failpoint.Hit("sandbox.pause.quiesced"), in.Freeze(ctx)); err != nil {
		return 0, err
	}
	clock.mark("freeze")
	if err := failpoint.Hit("sandbox.pause.frozen"); err != nil {
		return 0, err
	}
	stage := s.dir.CaptureStage(s.journal().Pending)
	if err := errors.Join(os.RemoveAll(stage), os.MkdirAll(stage, 0o700)); err != nil {
		return 0, fault.Wrap(err, "make", "capture directory")
	}
	record, stats, err := in.Capture(ctx, stage, runtime.CaptureOptions{Parent: m.parentOf(s)})
	if err != nil {
		return 0, err
	}
	clock.phases = append(clock.phases, stats.Phases...)
	clock.last = time.Now()
	if err := failpoint.Hit("sandbox.pause.captured"); err != nil {
		return 0, err
	}
	if err := m.publish(s, stage, record); err != nil {
		return 0, err
	}
	clock.mark("publish")
	return stats.BytesWritten, nil
}

// parentOf is the capture that the sandbox was last resumed from, if any.
func (m *Manager) parentOf(s *Sandbox) *runtime.Capture {
	j := s.journal()
	if j.Capture == 0 {
		return nil
	}
	c, _, err := readCapture(s.dir.Capture(j.Capture))
	if err != nil {
		m.log.Warn("earlier capture is unreadable; saving everything", "sandbox", j.ID, "error", err)
		return nil
	}
	return &c
}

// publish writes the manifest and renames the capture into place.
func (m *Manager) publish(s *Sandbox, stage string, record json.RawMessage) error {
	j := s.journal()
	err := writeManifest(stage, manifest{
		Version: manifestVersion, SandboxID: j.ID, Generation: j.Generation, CreatedAt: m.cfg.Clock(),
		Runtime: j.Runtime, Record: record, ControlToken: j.ControlToken,
	})
	if err != nil {
		return err
	}
	if err := failpoint.Hit("sandbox.pause.manifest"); err != nil {
		return err
	}
	if err := os.Rename(stage, s.dir.Capture(j.Pending)); err != nil {
		return fault.Wrap(err, "publish", "capture")
	}
	return fault.Wrap(syncDir(s.dir.Captures()), "sync", "capture directory")
}

// abandonPause makes the sandbox run again after a pause that was not committed. When it does
// not, it is failed, with its disk kept.
func (m *Manager) abandonPause(ctx context.Context, s *Sandbox, cause error) error {
	cause = classify(cause)
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	in, _, guest := s.parts()
	err := m.unfreeze(ctx, s, in, guest)
	stage := s.dir.CaptureStage(s.journal().Pending)
	cleanup := errors.Join(os.RemoveAll(stage), os.RemoveAll(s.dir.Capture(s.journal().Pending)))
	if err == nil {
		return errors.Join(cause, cleanup, s.update(false, func(j *journal) {
			j.State, j.Pending = Running, 0
		}))
	}
	reason := fmt.Sprintf("pause failed (%v) and the sandbox could not be thawed (%v)", fault.Message(cause), err)
	return errors.Join(cause, cleanup, err, m.fail(ctx, s, reason))
}

func (m *Manager) unfreeze(ctx context.Context, s *Sandbox, in runtime.Instance, guest *guestclient.Client) error {
	if err := in.Thaw(ctx); err != nil {
		return err
	}
	return guest.Thaw(untilExit(ctx, in), s.journal().Generation)
}

// completePause does what follows the commit: end the runtime, give back slot and uid, drop
// what the new capture no longer needs. Every step may be repeated after a crash.
func (m *Manager) completePause(ctx context.Context, s *Sandbox, op Operation, reason string, clock *stopwatch) error {
	in, slot, _ := s.parts()
	if err := failpoint.Hit("sandbox.pause.published"); err != nil {
		return err
	}
	if in != nil {
		if err := in.Stop(ctx); err != nil {
			return fault.Wrap(err, "stop", "paused instance")
		}
	}
	if err := failpoint.Hit("sandbox.pause.stopped"); err != nil {
		return err
	}
	s.attach(nil, nil, nil)
	if slot != nil {
		if err := m.cfg.Network.Release(ctx, slot); err != nil {
			m.log.Error("slot not released; the collector will", "sandbox", s.ID(), "error", err)
		}
	}
	clock.mark("release")
	usage := m.pausedUsage(s)
	err := s.update(true, func(j *journal) {
		j.State, j.Reason = Paused, reason
		j.Capture, j.Pending = j.Pending, 0
		j.Generation++
		j.note(op.ID)
		j.Slot, j.UID, j.Instance = noSlot, 0, nil
		j.DiskIndex++
		j.ActiveAt, j.Phases, j.Usage = m.cfg.Clock(), clock.phases, usage
	})
	if err != nil {
		return err
	}
	m.log.Info("sandbox paused", "sandbox", s.ID(), "reason", reason, "phases", phaseText(clock.phases))
	return m.dropUnused(s)
}

// pausedUsage counts what the pending capture and the disk really take.
func (m *Manager) pausedUsage(s *Sandbox) runtime.Usage {
	return runtime.Usage{
		MemoryBytes: allocated(s.dir.Captures()),
		DiskBytes:   allocated(s.dir.Disk()),
	}
}

// allocated sums blocks × 512 below a directory: real use, not apparent size.
func allocated(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what vanished meanwhile takes no space
		}
		if info, err := d.Info(); err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return total
}

// dropUnused removes captures and disk files that the current capture does not stand on.
func (m *Manager) dropUnused(s *Sandbox) error {
	current := s.dir.Capture(s.journal().Capture)
	c, _, err := readCapture(current)
	if err != nil {
		return err
	}
	files, err := m.cfg.Runtime.Files(c)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, f := range files {
		keep[f] = true
	}
	for _, dir := range []string{s.dir.Captures(), s.dir.Disk()} {
		if err := prune(dir, func(path string) bool {
			return keep[path] || strings.HasPrefix(path, current+"/")
		}); err != nil {
			return fault.Wrap(err, "remove", "superseded capture")
		}
	}
	return nil
}

// prune deletes every file below dir that is not kept, and directories left empty.
func prune(dir string, keep func(string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			if err := prune(path, keep); err != nil {
				return err
			}
			_ = os.Remove(path) // only when it is empty
		case !keep(path):
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// classify gives a full disk its kind and says what to do.
func classify(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &fault.Error{
			Kind: fault.ResourceExhausted, Err: err,
			Hint: "the host's disk is full; the sandbox still runs: free space and try again",
		}
	}
	return err
}

// phaseText is phases for the log.
func phaseText(phases []runtime.Phase) string {
	var b strings.Builder
	for _, p := range phases {
		fmt.Fprintf(&b, "%s=%s ", p.Name, p.Duration.Round(100*time.Microsecond))
	}
	return strings.TrimSpace(b.String())
}
