package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
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

// plan is a create that was checked: what will be made, of what, in what.
type plan struct {
	req CreateRequest
	rt  runtime.Runtime
	// template whose memory or kernel it starts from; nil when it starts from an origin.
	template *image.Template
	origin   *origin
	fork     *forkNote
}

// Create makes a sandbox and returns when it answers. A failed create leaves nothing, or, when
// something of it would not go, a sandbox that is being destroyed.
func (m *Manager) Create(ctx context.Context, op Operation, req CreateRequest, report Report) (View, error) {
	if report == nil {
		report = func(string, string) {}
	}
	m.making.RLock()
	defer m.making.RUnlock()
	p, err := m.plan(req)
	if err != nil {
		return View{}, err
	}
	ctx, done, err := m.call(ctx)
	if err != nil {
		return View{}, err
	}
	defer done()
	return m.carryOut(ctx, op, p, report)
}

// carryOut makes a planned sandbox, or answers as before when the operation did it already.
func (m *Manager) carryOut(ctx context.Context, op Operation, p plan, report Report) (View, error) {
	for {
		if _, err := m.lookup(p.req.ID); err != nil { // one that is there takes no space
			if err := m.room("create", "sandbox "+p.req.ID); err != nil {
				return View{}, err
			}
		}
		s, fresh := m.claimID(p)
		if fresh {
			return m.createFresh(ctx, s, op, p, report)
		}
		view, gone, err := m.createAgain(ctx, s, op)
		if !gone {
			return view, err
		}
	}
}

// createFresh makes the sandbox that claimID has just entered.
func (m *Manager) createFresh(ctx context.Context, s *Sandbox, op Operation, p plan, report Report) (View, error) {
	ctx, leave := s.begin(ctx)
	defer leave()
	if err := m.create(ctx, s, op, p, report); err != nil {
		err = classify(explain(ctx, err), "")
		undoing, cancel := undo.Context(ctx)
		defer cancel()
		return View{}, fault.Wrap(errors.Join(err, m.destroy(undoing, s)), "create", "sandbox "+p.req.ID)
	}
	return s.View(), nil
}

// createAgain answers a create whose id is taken: as before when it is the same operation. gone
// says that the id is free again, since that create failed while this one waited for it, or since
// what had it was being destroyed.
func (m *Manager) createAgain(ctx context.Context, s *Sandbox, op Operation) (_ View, gone bool, _ error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return View{}, false, err
	}
	defer leave()
	if state := s.journal().State; m.has(s) && (state == Creating || state == Destroying) {
		if err := m.finish(ctx, s); err != nil {
			return View{}, false, fault.Wrap(err, "finish the end of", "sandbox "+s.ID())
		}
	}
	if !m.has(s) {
		return View{}, true, nil
	}
	if j := s.journal(); j.did(op.ID) {
		return s.View(), false, nil
	}
	return View{}, false, fault.New(fault.AlreadyExists, "create", "sandbox "+s.ID(), "the id is taken")
}

// plan refuses bad input before anything is made, and fills in what was left open.
func (m *Manager) plan(req CreateRequest) (plan, error) {
	if err := checkID(req.ID); err != nil {
		return plan{}, err
	}
	if err := checkIdle("create", req.IdleTimeout); err != nil {
		return plan{}, err
	}
	if req.Snapshot != "" {
		return m.planSnapshot(req)
	}
	rt, err := m.choose(req.Runtime)
	if err != nil {
		return plan{}, err
	}
	template, err := m.cfg.Images.Template(req.Template)
	if err != nil {
		return plan{}, err
	}
	fillIn(&req.Resources, runtime.Resources{VCPUs: DefaultVCPUs, MemoryMB: DefaultMemoryMB, DiskSizeMB: DefaultDiskSizeMB})
	return plan{req: req, rt: rt, template: &template}, checkResources(req.Resources, template)
}

func badField(field string, value any, why string) *fault.Error {
	return fault.New(fault.Invalid, "create", "sandbox", fmt.Sprintf("%s is %v: %s", field, value, why))
}

func checkID(id string) error {
	if !idPattern.MatchString(id) {
		return badField("sandbox_id", id, "it must be 20 characters of a-z and 0-9")
	}
	return nil
}

// fillIn gives resources that were not asked for the value that they have by default.
func fillIn(r *runtime.Resources, by runtime.Resources) {
	for _, f := range []struct {
		have *int
		by   int
	}{{&r.VCPUs, by.VCPUs}, {&r.MemoryMB, by.MemoryMB}, {&r.DiskSizeMB, by.DiskSizeMB}} {
		if *f.have == 0 {
			*f.have = f.by
		}
	}
}

func checkResources(r runtime.Resources, t image.Template) error {
	switch least := int((t.DiskBytes + 1<<20 - 1) >> 20); {
	case r.VCPUs < 1 || r.VCPUs > 32:
		return badField("vcpus", r.VCPUs, "it must be 1 to 32")
	case r.MemoryMB < 128 || r.MemoryMB > 65536 || r.MemoryMB%2 != 0:
		return badField("memory_mb", r.MemoryMB, "it must be an even number from 128 to 65536")
	case r.DiskSizeMB < least || r.DiskSizeMB > 1<<20:
		return badField("disk_size_mb", r.DiskSizeMB, fmt.Sprintf("template %s needs at least %d, and 1048576 is the most", t.Name, least))
	}
	return nil
}

// claimID puts a new sandbox into the map, with its gate taken; fresh is false when it was there.
func (m *Manager) claimID(p plan) (s *Sandbox, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.all[p.req.ID]; ok {
		return s, false
	}
	s = newSandbox(m.cfg.Data.Sandbox(p.req.ID), m.newJournal(p), p.rt)
	s.gate <- struct{}{} // before anybody else can see it
	m.all[p.req.ID] = s
	return s, true
}

// newJournal is what is known of a sandbox before anything of it was made.
func (m *Manager) newJournal(p plan) journal {
	now := m.cfg.Clock()
	j := journal{
		Version: 1, ID: p.req.ID, State: Creating, Slot: noSlot, BootID: m.boot,
		TemplateName: p.req.Template, Resources: p.req.Resources, Envs: p.req.Envs, IdleTimeout: p.req.IdleTimeout,
		Runtime: p.rt.Name(), Isolation: p.rt.Isolation(),
		MachineID: newMachineID(), AccessToken: newToken(),
		CreatedAt: now, ActiveAt: now,
	}
	if p.origin != nil {
		j.Template, j.DefaultUser = p.origin.man.Template, p.origin.man.DefaultUser
		j.Generation, j.Fork = p.origin.man.Generation, p.fork
		return j
	}
	j.TemplateName, j.Template, j.DefaultUser = p.template.Name, bootable(*p.template), p.template.DefaultUser
	return j
}

// create makes a sandbox; when it fails, the caller destroys what there is of it.
func (m *Manager) create(ctx context.Context, s *Sandbox, op Operation, p plan, report Report) error {
	if err := makeDirs(s.dir); err != nil {
		return err
	}
	if err := s.update(false, func(*journal) {}); err != nil {
		return err
	}
	if err := failpoint.Hit("sandbox.create.journaled"); err != nil {
		return err
	}
	clock := newStopwatch()
	src, err := m.creationSource(ctx, s, p, report)
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

// creationSource is the origin, the template's warm memory, or a boot for what that cannot start.
func (m *Manager) creationSource(ctx context.Context, s *Sandbox, p plan, report Report) (source, error) {
	if p.origin != nil {
		return m.inherit(ctx, s, *p.origin, p.req.Cold)
	}
	if r := p.req.Resources; !p.req.Cold && r.DiskSizeMB >= warmSize(s.rt, r, *p.template).DiskSizeMB {
		return m.warmSource(ctx, s.rt, r, *p.template, report)
	}
	report("boot", "booting a kernel")
	return m.bootSource(s, *p.template)
}

func makeDirs(dir paths.Sandbox) error {
	for _, d := range []string{dir.String(), dir.Run(), dir.Disk(), dir.Captures()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fault.Wrap(err, "make", "sandbox directory")
		}
	}
	return nil
}

// settleRunning writes down that the sandbox runs; with that its start is done. change is what
// else its journal says from then on; nil is nothing.
func (m *Manager) settleRunning(s *Sandbox, op Operation, clock *stopwatch, change func(*journal)) error {
	now := m.cfg.Clock()
	s.touch(now)
	err := s.update(false, func(j *journal) {
		j.State, j.Reason = Running, ""
		j.Generation++
		j.note(op.ID)
		j.ActiveAt, j.Phases = now, clock.phases
		if change != nil {
			change(j)
		}
	})
	if err == nil {
		err = failpoint.Hit("sandbox.settle.written")
	}
	if err != nil {
		return err
	}
	in, _, _ := s.parts()
	m.watch(s, in)
	m.log.Info("sandbox runs", "sandbox", s.ID(), "phases", phaseText(clock.phases))
	return nil
}
