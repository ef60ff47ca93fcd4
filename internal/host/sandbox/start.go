package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/runtime"
)

// How long a guest may take to answer: a booting one, and one that was restored.
const (
	bootTimeout    = 90 * time.Second
	restoreTimeout = 30 * time.Second
)

// source is what a sandbox starts from: a capture, or (nil) a kernel.
type source struct {
	capture *runtime.Capture
	// from is the capture whose disk a boot starts over; nil is the template's.
	from *runtime.Capture
	// controlToken is what the guest in the capture, or the one that boots, accepts first.
	controlToken string
	// A boot brings the guest agent in an initramfs, or as a program for the runtime to start.
	initrd string
	guest  runtime.Guest
	// kernelELF is what boots, in a runtime that cannot take the template's own kernel.
	kernelELF string
	// grow: the disk is larger than the file system on it.
	grow bool
}

// spec of the sandbox's current slot, uid and disk index. A uid that is not the installation's
// (any more) is never used: it may be somebody else's.
func (s *Sandbox) spec(m *Manager) runtime.Spec {
	j := s.journal()
	spec := runtime.Spec{
		ID: j.ID, Resources: j.Resources, Template: j.Template,
		RunDir: s.dir.Run(), DiskDir: s.dir.Disk(), DiskIndex: j.DiskIndex,
		Port: runtime.Port{MAC: network.GuestMAC.String()},
	}
	if m.cfg.UIDs.Contains(j.UID) {
		spec.UID = j.UID
	}
	return spec
}

// start brings a sandbox from its source to answering, with user processes running. The
// journal names slot, uid and disk before they are used, and what was made is attached to s at
// once: when start fails, the caller ends it by way of the sandbox's state.
func (m *Manager) start(ctx context.Context, s *Sandbox, src source, clock *stopwatch) error {
	slot, err := m.claimSlot(ctx, s)
	if err != nil {
		return err
	}
	clock.mark("slot")
	if err := m.launch(ctx, s, slot, src); err != nil {
		return err
	}
	clock.mark("runtime")
	in, _, guest := s.parts()
	if err := m.introduce(ctx, s, in, guest, src, clock); err != nil {
		return withConsole(err, in)
	}
	return nil
}

// claimSlot takes a network slot and writes it, and the uid that goes with it, down.
func (m *Manager) claimSlot(ctx context.Context, s *Sandbox) (*network.Slot, error) {
	m.starting.RLock()
	defer m.starting.RUnlock()
	slot, err := m.cfg.Network.Acquire(ctx, s.ID(), PortOf(s.rt))
	if err != nil {
		return nil, err
	}
	s.attach(nil, slot, nil)
	if err := failpoint.Hit("sandbox.start.acquired"); err != nil {
		return nil, err
	}
	uid := m.cfg.UIDs.UID(slot.Index())
	if !m.cfg.UIDs.Contains(uid) {
		return nil, fault.New(fault.ResourceExhausted, "take", "uid for sandbox "+s.ID(), fmt.Sprintf("slot %d has none", slot.Index()))
	}
	err = s.update(false, func(j *journal) { j.Slot, j.UID = slot.Index(), uid })
	return slot, errors.Join(err, failpoint.Hit("sandbox.start.slot"))
}

// launch starts the runtime's instance and writes down how to find it again.
func (m *Manager) launch(ctx context.Context, s *Sandbox, slot *network.Slot, src source) error {
	spec := s.spec(m)
	unplug, err := plug(&spec, slot, s.rt)
	if err != nil {
		return err
	}
	defer unplug()
	var in runtime.Instance
	if src.capture == nil {
		src.boots(&spec)
		in, err = s.rt.Boot(ctx, spec, runtime.BootOptions{From: src.from})
	} else {
		in, err = s.rt.Restore(ctx, spec, *src.capture)
	}
	if err != nil {
		return err
	}
	s.attach(in, slot, guestclient.New(slot.Dial, src.controlToken))
	if err := failpoint.Hit("sandbox.start.launched"); err != nil {
		return err
	}
	record, err := in.Record()
	if err != nil {
		return err
	}
	err = s.update(false, func(j *journal) { j.Instance, j.Booted = record, src.capture == nil })
	return errors.Join(err, failpoint.Hit("sandbox.start.recorded"))
}

// introduce makes the guest this sandbox: it runs, is told who it is, states the facts, and
// only then its user processes run.
func (m *Manager) introduce(ctx context.Context, s *Sandbox, in runtime.Instance, guest *guestclient.Client, src source, clock *stopwatch) error {
	limit := restoreTimeout
	if src.capture == nil {
		limit = bootTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx = untilExit(ctx, in)
	if err := in.Thaw(ctx); err != nil {
		return explain(ctx, err)
	}
	if src.capture == nil {
		if err := guest.WaitReady(ctx); err != nil {
			return explain(ctx, err)
		}
		clock.mark("boot")
	}
	id := m.nextIdentity(s, src)
	if err := failpoint.Hit("sandbox.start.handshake"); err != nil {
		return err
	}
	if _, err := guest.Handshake(ctx, id); err != nil {
		return explain(ctx, err)
	}
	clock.mark("handshake")
	if err := failpoint.Hit("sandbox.start.greeted"); err != nil {
		return err
	}
	if err := guest.Thaw(ctx, id.Generation); err != nil {
		return explain(ctx, err)
	}
	clock.mark("thaw")
	if err := failpoint.Hit("sandbox.start.thawed"); err != nil {
		return err
	}
	return s.update(false, func(j *journal) { j.ControlToken = id.ControlToken })
}

// nextIdentity is who the sandbox is in the generation that begins.
func (m *Manager) nextIdentity(s *Sandbox, src source) guestclient.Identity {
	j := s.journal()
	return guestclient.Identity{
		SandboxID: j.ID, Generation: j.Generation + 1, Hostname: j.ID, MachineID: j.MachineID,
		AccessToken: j.AccessToken, ControlToken: newToken(), Envs: j.Envs,
		DefaultUser: j.DefaultUser, Grow: src.grow,
	}
}

// untilExit ends the context when the instance does, so that nobody waits for a dead guest.
func untilExit(ctx context.Context, in runtime.Instance) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-in.Exited():
			cancel(fault.New(fault.Internal, "", "", "the sandbox ended: "+in.Exit().Reason))
		case <-ctx.Done():
			cancel(nil)
		}
	}()
	return ctx
}

// consoleBytes is how much of the console goes into an error.
const consoleBytes = 400

// withConsole adds the last words of a guest that did not start.
func withConsole(err error, in runtime.Instance) error {
	log, e := in.Console()
	if e != nil || len(log) == 0 {
		return err
	}
	if len(log) > consoleBytes {
		log = log[len(log)-consoleBytes:]
	}
	f := &fault.Error{Kind: fault.KindOf(err), Err: fmt.Errorf("%w; its console ends with %q", err, log), Hint: fault.HintOf(err)}
	return f
}

// newToken is 256 random bits in hex.
func newToken() string { return randomHex(32) }

// newMachineID is what /etc/machine-id holds: 128 bits in hex.
func newMachineID() string { return randomHex(16) }

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// stopwatch times the phases of an operation.
type stopwatch struct {
	last   time.Time
	phases []runtime.Phase
}

func newStopwatch() *stopwatch { return &stopwatch{last: time.Now()} }

func (w *stopwatch) mark(name string) {
	now := time.Now()
	w.phases = append(w.phases, runtime.Phase{Name: name, Duration: now.Sub(w.last)})
	w.last = now
}
