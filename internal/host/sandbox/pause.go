package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
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

// PauseOptions of one pause.
type PauseOptions struct {
	// Reason that the paused sandbox shows.
	Reason string
	// DiskOnly leaves memory and processes out: a resume boots.
	DiskOnly bool
}

// Pause saves a sandbox and frees what it held. Pausing a paused one is done already. Requests
// to its guest that are still open are cut off.
func (m *Manager) Pause(ctx context.Context, op Operation, id string, opts PauseOptions) (PauseResult, error) {
	return m.pauseIf(ctx, op, id, opts, nil)
}

// pauseIf is Pause, unless still (called with s.mu held, nil for always) says that it is no
// longer wanted at the moment from which no request gets through.
func (m *Manager) pauseIf(ctx context.Context, op Operation, id string, opts PauseOptions, still func(*Sandbox) bool) (PauseResult, error) {
	s, ctx, leave, err := m.enter(ctx, id)
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
	written, err := m.pause(ctx, s, op, opts, still)
	if err != nil {
		return PauseResult{}, fault.Wrap(err, "pause", "sandbox "+id)
	}
	m.compactSoon(s)
	return PauseResult{View: s.View(), BytesWritten: written}, nil
}

func (m *Manager) pause(ctx context.Context, s *Sandbox, op Operation, opts PauseOptions, still func(*Sandbox) bool) (int64, error) {
	clock := newStopwatch()
	next := s.journal()
	if err := m.giveReserve(); err != nil {
		return 0, err
	}
	// Before the journal names it: it would count as published.
	empty, err := m.clearCapture(s, next.next())
	if err != nil {
		return 0, classify(err, stillRuns(s))
	}
	empty()
	wanted := true
	err = s.update(false, func(j *journal) {
		if wanted = still == nil || still(s); wanted {
			j.State, j.Pending = Pausing, j.next()
		}
	})
	switch {
	case err != nil:
		return 0, classify(err, stillRuns(s))
	case !wanted:
		return 0, fault.New(fault.FailedPrecondition, "", "", "it is in use")
	}
	written, err := m.captureSandbox(ctx, s, opts, clock)
	if err != nil {
		return 0, m.abandonPause(ctx, s, explain(ctx, err))
	}
	// Committed: from here on the pause only completes, whoever gives up waiting for it.
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return written, m.completePause(ctx, s, op, opts.Reason, clock)
}

// captureSandbox freezes the sandbox from the inside out and saves it. It returns after the
// capture was renamed into place, which is the commit.
func (m *Manager) captureSandbox(ctx context.Context, s *Sandbox, opts PauseOptions, clock *stopwatch) (int64, error) {
	if err := failpoint.Hit("sandbox.pause.marked"); err != nil {
		return 0, err
	}
	in, _, guest := s.parts()
	ctx = untilExit(ctx, in)
	if err := m.quiesce(ctx, s, opts.DiskOnly); err != nil {
		return 0, explain(ctx, err)
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
	record, stats, err := in.Capture(ctx, stage, runtime.CaptureOptions{Parent: m.parentOf(s), DiskOnly: opts.DiskOnly})
	if err != nil {
		return 0, err
	}
	clock.phases = append(clock.phases, stats.Phases...)
	clock.last = time.Now()
	if err := failpoint.Hit("sandbox.pause.captured"); err != nil {
		return 0, err
	}
	man := manifestOf(s.journal(), record)
	man.CreatedAt, man.DiskOnly, man.Phases = m.cfg.Clock(), opts.DiskOnly, clock.phases
	err = m.publish(s, stage, man,
		func() error { return failpoint.Hit("sandbox.pause.manifest") },
		func() error { return failpoint.Hit("sandbox.pause.renamed") })
	if err != nil {
		return 0, err
	}
	clock.mark("publish")
	return stats.BytesWritten, nil
}

// parentOf is the capture whose memory the sandbox was last resumed with, if any.
func (m *Manager) parentOf(s *Sandbox) *runtime.Capture {
	j := s.journal()
	if j.Capture == 0 || j.Booted {
		return nil
	}
	c, man, err := readCapture(s.dir.Capture(j.Capture))
	if err != nil {
		m.log.Warn("earlier capture is unreadable; saving everything", "sandbox", j.ID, "error", err)
		return nil
	}
	if man.DiskOnly {
		return nil
	}
	return &c
}

// publish writes the manifest and renames the pending capture into place. written and renamed are
// called after these steps; with an error of theirs it is not published.
func (m *Manager) publish(s *Sandbox, stage string, man manifest, written, renamed func() error) error {
	if err := writeManifest(stage, man); err != nil {
		return err
	}
	if err := written(); err != nil {
		return err
	}
	empty, err := m.clearCapture(s, s.journal().Pending)
	if err != nil {
		return err
	}
	defer empty()
	if err := os.Rename(stage, s.dir.Capture(s.journal().Pending)); err != nil {
		return fault.Wrap(err, "publish", "capture")
	}
	err = errors.Join(renamed(), syncDir(s.dir.Captures()), syncDir(s.dir.String()), syncDir(m.cfg.Data.Sandboxes()))
	if err == nil {
		return nil
	}
	// The disk does not promise to keep it. Where it cannot be taken back either, it stands.
	if back := m.unpublish(s); back != nil && m.published(s) {
		m.log.Error("capture is published, but not synced", "sandbox", s.ID(), "error", errors.Join(err, back))
		return nil
	}
	return fault.Wrap(err, "sync", "capture directory")
}

// clearCapture moves away, for empty to remove, what lies where a capture will be published. No
// journal ever named it as the sandbox's: it is what a pause left that could not be taken back.
func (m *Manager) clearCapture(s *Sandbox, n int) (empty func(), err error) {
	empty, err = m.discard(s.dir.Capture(n), fmt.Sprintf("%s-capture-%d", s.ID(), n))
	if errors.Is(err, os.ErrNotExist) {
		return empty, nil
	}
	if err == nil {
		m.log.Warn("leftover of an earlier pause removed", "sandbox", s.ID(), "capture", n)
		err = syncDir(s.dir.Captures())
	}
	return empty, fault.Wrap(err, "remove", "leftover of an earlier pause")
}

// unpublish makes the pending capture a stage again, before the sandbox runs on: the disk that
// the capture names is then written to, and must never meet the memory in it, after a power cut
// neither. When that cannot be promised, what was published stays so.
func (m *Manager) unpublish(s *Sandbox) error {
	n := s.journal().Pending
	dir, stage := s.dir.Capture(n), s.dir.CaptureStage(n)
	err := os.Rename(dir, stage)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, "take back", "capture")
	}
	moved := err == nil
	if err = syncDir(s.dir.Captures()); err != nil && moved {
		err = errors.Join(err, os.Rename(stage, dir))
	}
	return fault.Wrap(err, "take back", "capture")
}

// abandonPause makes the sandbox run again after a pause that was not committed. When it does
// not, it is failed, with its disk kept; where only its guest is slow the pause stays unfinished.
func (m *Manager) abandonPause(ctx context.Context, s *Sandbox, cause error) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	err := m.runOn(ctx, s)
	if err == nil {
		return classify(cause, stillRuns(s))
	}
	reason := fmt.Sprintf("pause failed (%v) and the sandbox could not be thawed (%v)", fault.Message(cause), err)
	return errors.Join(m.unthawed(ctx, s, err, reason), classify(cause, ""))
}

// stillRuns is for errors: what a sandbox does that was not paused.
func stillRuns(s *Sandbox) string {
	if s.journal().Held != nil {
		return "the sandbox stays frozen: "
	}
	return "the sandbox still runs: "
}

// runOn lets a sandbox in the middle of an uncommitted pause run on. One that was held stays so.
func (m *Manager) runOn(ctx context.Context, s *Sandbox) error {
	if s.journal().Held != nil {
		m.holdOn(ctx, s)
	} else if err := m.thaw(ctx, s); err != nil {
		return err
	}
	m.dropStage(s)
	m.settleThawed(s)
	return nil
}

// recordOf is the record of the sandbox's instance as it is now, as far as it can be told.
func (m *Manager) recordOf(s *Sandbox) json.RawMessage {
	in, _, _ := s.parts()
	if in != nil {
		record, err := in.Record()
		if err == nil {
			return record
		}
		m.log.Warn("instance's record is not renewed", "sandbox", s.ID(), "error", err)
	}
	return s.journal().Instance
}

// dropPending removes what a pause of a sandbox that dies has written, published or not: nobody
// completes it any more. Where that cannot be, clearCapture does it.
func (m *Manager) dropPending(s *Sandbox) {
	if s.journal().Pending == 0 {
		return
	}
	if err := m.unpublish(s); err != nil {
		m.log.Warn("unfinished capture stays until the next pause", "sandbox", s.ID(), "error", err)
	}
	m.dropStage(s)
}

// dropStage removes what an uncommitted pause has written.
func (m *Manager) dropStage(s *Sandbox) {
	if err := os.RemoveAll(s.dir.CaptureStage(s.journal().Pending)); err != nil {
		m.log.Warn("unfinished capture stays until the next pause", "sandbox", s.ID(), "error", err)
	}
}

// published says whether the pending capture is in place.
func (m *Manager) published(s *Sandbox) bool {
	_, _, err := readCapture(s.dir.Capture(s.journal().Pending))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.log.Error("published capture is unreadable", "sandbox", s.ID(), "error", err)
	}
	return err == nil
}

// finishPause completes a pause whose capture is published, and undoes another.
func (m *Manager) finishPause(ctx context.Context, s *Sandbox) error {
	if m.published(s) {
		return m.completePause(ctx, s, Operation{}, "paused", newStopwatch())
	}
	err := m.unpublish(s)
	if err == nil {
		err = m.runOn(ctx, s)
	}
	if err != nil {
		return m.unthawed(ctx, s, err, "it could not be thawed after an unfinished pause: "+fault.Message(err))
	}
	return nil
}

// completePause does what follows the commit: end the runtime, give back slot and uid, drop
// what the new capture no longer needs. Every step may be repeated after a crash.
func (m *Manager) completePause(ctx context.Context, s *Sandbox, op Operation, reason string, clock *stopwatch) error {
	if err := failpoint.Hit("sandbox.pause.published"); err != nil {
		return err
	}
	if err := m.end(ctx, s); err != nil {
		return fault.Wrap(err, "stop", "paused instance")
	}
	if err := failpoint.Hit("sandbox.pause.stopped"); err != nil {
		return err
	}
	clock.mark("stop")
	usage := m.pausedUsage(s)
	slot, err := m.writeVacant(s, true, func(j *journal) {
		j.State, j.Reason = Paused, reason
		j.saved()
		j.Generation++
		j.note(op.ID)
		j.DiskIndex++
		j.ActiveAt, j.Phases, j.Usage = m.cfg.Clock(), clock.phases, usage
	})
	if err != nil {
		return classify(err, "the sandbox is saved and will be paused once there is space: ")
	}
	err = failpoint.Hit("sandbox.pause.written")
	m.release(ctx, slot)
	m.log.Info("sandbox paused", "sandbox", s.ID(), "reason", reason, "phases", phaseText(clock.phases))
	if err = errors.Join(err, failpoint.Hit("sandbox.pause.released")); err != nil {
		return err
	}
	m.dropUnused(s)
	return nil
}

// phaseText is phases for the log.
func phaseText(phases []runtime.Phase) string {
	var b strings.Builder
	for _, p := range phases {
		fmt.Fprintf(&b, "%s=%s ", p.Name, p.Duration.Round(100*time.Microsecond))
	}
	return strings.TrimSpace(b.String())
}
