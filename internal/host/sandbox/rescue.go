package sandbox

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// rescue wakes a failed or lost sandbox from what there is of it: the disk that its dead instance
// left or, where that means nothing without the memory that is gone, its last capture.
//
// The disk becomes a capture as in a pause: the journal names it first, the rename publishes it.
// Until then a failure leaves the sandbox as it was; from then on it is paused, and booted as one.
// The last save stays until a pause has made another: should that disk not boot, the sandbox goes
// back to it (fallBack).
func (m *Manager) rescue(ctx context.Context, s *Sandbox, op Operation, opts ResumeOptions) error {
	j := s.journal()
	if j.Last != nil && s.rt.Capabilities().DiskApart {
		err := m.salvage(ctx, s)
		if err == nil {
			return m.resume(ctx, s, op, opts)
		}
		if beyondRepair := fault.Is(err, fault.DataLoss) || fault.Is(err, fault.NotFound); !beyondRepair || j.Capture == 0 {
			return err
		}
		m.log.Error("a dead sandbox's disk cannot be saved; going back to its capture", "sandbox", j.ID, "error", err)
	}
	if j.Capture == 0 {
		return fault.New(fault.FailedPrecondition, "start", "sandbox "+j.ID,
			"nothing was saved of it: it is "+string(j.State)+" ("+j.Reason+"), and was never paused").
			WithHint("remove it: roost rm " + j.ID)
	}
	return m.goBack(ctx, s, op, opts)
}

// goBack wakes a dead sandbox as it was when it was last saved.
func (m *Manager) goBack(ctx context.Context, s *Sandbox, op Operation, opts ResumeOptions) error {
	_, man, err := readCapture(s.dir.Capture(s.journal().Capture))
	if err != nil {
		return err
	}
	return m.wake(ctx, s, wayBack(s, man, op, opts))
}

// wayBack is the start of a sandbox as it was when it was last saved.
func wayBack(s *Sandbox, man manifest, op Operation, opts ResumeOptions) wake {
	w := wake{op: op, opts: opts, from: s.journal().State}
	w.boot = man.DiskOnly || s.rt.Capabilities().DiskApart
	w.why = "resumed from its save of "
	if w.boot {
		w.why = "booted from its disk as it was saved at "
	}
	w.why += clockText(man.CreatedAt) + "; what came later is lost"
	return w
}

// fallBack wakes a paused sandbox, whose salvaged disk has just not started, as it was when it
// was last saved. When that fails too, it is as it was before.
func (m *Manager) fallBack(ctx context.Context, s *Sandbox, op Operation, opts ResumeOptions, cause error) error {
	j := s.journal()
	_, man, err := readCapture(s.dir.Capture(j.Fallback))
	if err != nil {
		return errors.Join(cause, err)
	}
	m.log.Error("a salvaged disk does not start; going back to the last save", "sandbox", j.ID,
		"capture", j.Capture, "save", j.Fallback, "error", cause)
	w := wayBack(s, man, op, opts)
	w.why = "its disk, saved after it had died, did not start (" + fault.Message(cause) + "): " + w.why
	// In one: between the two anybody would take the old save for all there is.
	err = s.update(true, func(j *journal) {
		j.State = Resuming
		j.exchange()
	})
	if err == nil {
		err = m.wake(ctx, s, w)
	}
	if err == nil {
		return nil
	}
	if s.journal().State == Resuming {
		ctx, cancel := undo.Context(ctx)
		defer cancel()
		err = errors.Join(err, m.abandonResume(ctx, s))
	}
	return errors.Join(cause, fault.Wrap(err, "go back to", "its last save"))
}

// startsNever says of an error that it is the capture's, as far as anybody can tell: not of
// somebody who gave up, and not of a host that has no room. Of one that is the host's all the
// same, the way back ends in it, too.
func startsNever(ctx context.Context, err error) bool {
	noRoom := fault.Is(err, fault.ResourceExhausted) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	return ctx.Err() == nil && !noRoom
}

// salvage makes a dead sandbox's disk its next capture, with which it is paused.
func (m *Manager) salvage(ctx context.Context, s *Sandbox) error {
	err := s.update(true, func(j *journal) { j.Pending = j.next() })
	if err != nil {
		return err
	}
	if err = m.publishDisk(ctx, s); err == nil {
		err = failpoint.Hit("sandbox.rescue.published")
	}
	// Whatever came of it: what is published counts, and what is not goes.
	return errors.Join(err, m.finishSalvage(s))
}

func (m *Manager) publishDisk(ctx context.Context, s *Sandbox) error {
	j := s.journal()
	stage := s.dir.CaptureStage(j.Pending)
	if err := errors.Join(os.RemoveAll(stage), os.MkdirAll(stage, 0o700)); err != nil {
		return fault.Wrap(err, "make", "capture directory")
	}
	record, err := s.rt.Salvage(ctx, s.spec(m), j.Last, stage)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("sandbox.rescue.salvaged"); err != nil {
		return err
	}
	man := manifestOf(j, record)
	man.CreatedAt, man.DiskOnly = m.cfg.Clock(), true
	nothing := func() error { return nil }
	return m.publish(s, stage, man, nothing, nothing)
}

// finishSalvage ends a salvage where it is: a published one makes the sandbox paused.
func (m *Manager) finishSalvage(s *Sandbox) error {
	if !m.published(s) {
		m.dropStage(s)
		return s.update(true, func(j *journal) { j.Pending = 0 })
	}
	usage := m.pausedUsage(s)
	err := s.update(true, func(j *journal) {
		j.Reason = "its disk was saved after it was " + string(j.State) + ": " + j.Reason
		j.State, j.Last = Paused, nil
		j.salvaged()
		j.Generation++
		j.DiskIndex++
		j.ActiveAt, j.Usage = m.cfg.Clock(), usage
	})
	if err != nil {
		return err
	}
	m.log.Info("disk of a dead sandbox saved", "sandbox", s.ID())
	if err := failpoint.Hit("sandbox.rescue.marked"); err != nil {
		return err
	}
	m.dropUnused(s)
	return nil
}
