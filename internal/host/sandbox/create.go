package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// CreateRequest says what to create.
type CreateRequest struct {
	ID          string
	Template    string
	Resources   runtime.Resources
	IdleTimeout time.Duration
	Envs        map[string]string
	// Runtime asked for, by name; empty takes the host's best.
	Runtime string
	// Cold boots a kernel instead of restoring the template's memory.
	Cold bool
	// Snapshot is the id of the snapshot to start from; Template is then only the name to show.
	Snapshot string
}

// Report tells of a step that takes more than a moment.
type Report func(step, detail string)

// Create makes a sandbox and returns when it answers. A failed create leaves nothing, or, when
// something of it would not go, a sandbox that is being destroyed.
func (m *Manager) Create(ctx context.Context, op Operation, req CreateRequest, report Report) (View, error) {
	if report == nil {
		report = func(string, string) {}
	}
	rt, err := m.choose(req.Runtime)
	if err != nil {
		return View{}, err
	}
	template, err := m.checkCreate(&req)
	if err != nil {
		return View{}, err
	}
	ctx, done, err := m.call(ctx)
	if err != nil {
		return View{}, err
	}
	defer done()
	for {
		s, fresh := m.claimID(req, template, rt)
		if fresh {
			return m.createFresh(ctx, s, op, req, template, report)
		}
		view, gone, err := m.createAgain(ctx, s, op)
		if !gone {
			return view, err
		}
	}
}

// createFresh makes the sandbox that claimID has just entered.
func (m *Manager) createFresh(ctx context.Context, s *Sandbox, op Operation, req CreateRequest, t image.Template, report Report) (View, error) {
	ctx, leave := s.begin(ctx)
	defer leave()
	if err := m.create(ctx, s, op, req, t, report); err != nil {
		err = classify(explain(ctx, err), "")
		undoing, cancel := undo.Context(ctx)
		defer cancel()
		return View{}, fault.Wrap(errors.Join(err, m.destroy(undoing, s)), "create", "sandbox "+req.ID)
	}
	return s.View(), nil
}

// createAgain answers a create whose id is taken: as before when it is the same operation. gone
// says that the id is free again, since that create failed while this one waited for it.
func (m *Manager) createAgain(ctx context.Context, s *Sandbox, op Operation) (_ View, gone bool, _ error) {
	_, leave, err := s.enter(ctx)
	if err != nil {
		return View{}, false, err
	}
	defer leave()
	if !m.has(s) {
		return View{}, true, nil
	}
	if j := s.journal(); j.did(op.ID) {
		return s.View(), false, nil
	}
	return View{}, false, fault.New(fault.AlreadyExists, "create", "sandbox "+s.ID(), "the id is taken")
}

// checkCreate refuses bad input before anything is made.
func (m *Manager) checkCreate(req *CreateRequest) (image.Template, error) {
	bad := func(field string, value any, why string) error {
		return fault.New(fault.Invalid, "create", "sandbox", fmt.Sprintf("%s is %v: %s", field, value, why))
	}
	if !idPattern.MatchString(req.ID) {
		return image.Template{}, bad("sandbox_id", req.ID, "it must be 20 characters of a-z and 0-9")
	}
	template, err := m.cfg.Images.Template(req.Template)
	if err != nil {
		return image.Template{}, err
	}
	r := &req.Resources
	if r.VCPUs == 0 {
		r.VCPUs = DefaultVCPUs
	}
	if r.MemoryMB == 0 {
		r.MemoryMB = DefaultMemoryMB
	}
	if r.DiskSizeMB == 0 {
		r.DiskSizeMB = DefaultDiskSizeMB
	}
	switch least := int((template.DiskBytes + 1<<20 - 1) >> 20); {
	case r.VCPUs < 1 || r.VCPUs > 32:
		return template, bad("vcpus", r.VCPUs, "it must be 1 to 32")
	case r.MemoryMB < 128 || r.MemoryMB > 65536 || r.MemoryMB%2 != 0:
		return template, bad("memory_mb", r.MemoryMB, "it must be an even number from 128 to 65536")
	case r.DiskSizeMB < least || r.DiskSizeMB > 1<<20:
		return template, bad("disk_size_mb", r.DiskSizeMB, fmt.Sprintf("template %s needs at least %d, and 1048576 is the most", template.Name, least))
	}
	return template, checkIdle("create", req.IdleTimeout)
}

// claimID puts a new sandbox into the map, with its gate taken; fresh is false when it was there.
func (m *Manager) claimID(req CreateRequest, t image.Template, rt runtime.Runtime) (s *Sandbox, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.all[req.ID]; ok {
		return s, false
	}
	now := m.cfg.Clock()
	s = newSandbox(m.cfg.Data.Sandbox(req.ID), journal{
		Version: 1, ID: req.ID, State: Creating, Slot: noSlot, BootID: m.boot,
		TemplateName: t.Name, Resources: req.Resources, DefaultUser: t.DefaultUser,
		Template: bootable(t), Envs: req.Envs, IdleTimeout: req.IdleTimeout,
		Runtime: rt.Name(), Isolation: rt.Isolation(),
		MachineID: newMachineID(), AccessToken: newToken(),
		CreatedAt: now, ActiveAt: now,
	}, rt)
	s.gate <- struct{}{} // before anybody else can see it
	m.all[req.ID] = s
	return s, true
}

// create makes a sandbox; when it fails, the caller destroys what there is of it.
func (m *Manager) create(ctx context.Context, s *Sandbox, op Operation, req CreateRequest, t image.Template, report Report) error {
	if err := makeDirs(s.dir); err != nil {
		return err
	}
	if err := s.update(false, func(*journal) {}); err != nil {
		return err
	}
	clock := newStopwatch()
	src, err := m.creationSource(ctx, s, req, t, report)
	if err != nil {
		return err
	}
	if src.initrd != "" {
		defer os.Remove(src.initrd) // it holds a token
	}
	clock.mark("template")
	if err := m.start(ctx, s, src, clock); err != nil {
		return err
	}
	return m.settleRunning(s, op, clock, nil)
}

// creationSource is the template's warm memory, or a boot for what that cannot start.
func (m *Manager) creationSource(ctx context.Context, s *Sandbox, req CreateRequest, t image.Template, report Report) (source, error) {
	if !req.Cold && req.Resources.DiskSizeMB >= warmSize(s.rt, req.Resources, t).DiskSizeMB {
		return m.warmSource(ctx, s.rt, req.Resources, t, report)
	}
	report("boot", "booting a kernel")
	return m.bootSource(s, t)
}

func makeDirs(dir paths.Sandbox) error {
	for _, d := range []string{dir.String(), dir.Run(), dir.Disk(), dir.Captures()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fault.Wrap(err, "make", "sandbox directory")
		}
	}
	return nil
}

// settleRunning writes down that the sandbox runs; with that its start is done. A nil idle
// leaves the timeout as it is.
func (m *Manager) settleRunning(s *Sandbox, op Operation, clock *stopwatch, idle *time.Duration) error {
	now := m.cfg.Clock()
	s.touch(now)
	err := s.update(false, func(j *journal) {
		j.State, j.Reason = Running, ""
		j.Generation++
		j.note(op.ID)
		j.ActiveAt, j.Phases = now, clock.phases
		if idle != nil {
			j.IdleTimeout = *idle
		}
	})
	if err != nil {
		return err
	}
	in, _, _ := s.parts()
	m.watch(s, in)
	m.log.Info("sandbox runs", "sandbox", s.ID(), "phases", phaseText(clock.phases))
	return nil
}
