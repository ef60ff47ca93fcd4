package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// TemplateRequest says what to make a template of.
type TemplateRequest struct {
	Name string
	// Sandbox or Snapshot is the source.
	Sandbox, Snapshot string
	// Keep is the id of the snapshot that keeps the memory; "" takes the files alone.
	Keep string
}

func (r TemplateRequest) check() error {
	if err := image.ValidName(r.Name); err != nil {
		return err
	}
	if (r.Sandbox == "") == (r.Snapshot == "") {
		return fault.New(fault.Invalid, "create", "template "+r.Name, "it needs a sandbox or a snapshot to be made of, and not both")
	}
	if r.Keep != "" {
		return checkSnapshotID(r.Keep)
	}
	return nil
}

// CreateTemplate makes a template of a sandbox's or a snapshot's files, and with Keep a snapshot
// of its memory. The files come out of a throw-away instance, by way of its guest agent: so they
// serve every runtime, and nothing on the host ever reads a file system that a guest has made.
// A running source stands still while it is captured, not while the template is made.
func (m *Manager) CreateTemplate(ctx context.Context, op Operation, req TemplateRequest, report Report) (image.Template, *Snapshot, error) {
	if err := req.check(); err != nil {
		return image.Template{}, nil, err
	}
	ctx, done, err := m.call(ctx)
	if err != nil {
		return image.Template{}, nil, err
	}
	defer done()
	m.making.RLock()
	defer m.making.RUnlock()
	t, snap, err := m.createTemplate(ctx, op, req, report)
	return t, snap, fault.Wrap(classify(explain(ctx, err), ""), "create", "template "+req.Name)
}

func (m *Manager) createTemplate(ctx context.Context, op Operation, req TemplateRequest, report Report) (_ image.Template, _ *Snapshot, err error) {
	var undos undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undos.Rollback(ctx))
		}
	}()
	if t, snap, done, err := m.madeBefore(op, req); done || err != nil {
		return t, snap, err
	}
	if err := m.room("", ""); err != nil {
		return image.Template{}, nil, err
	}
	keeps := false
	if req.Keep != "" { // an earlier snapshot of that id is not this call's to take back
		_, err := m.Snapshot(req.Keep)
		keeps = fault.Is(err, fault.NotFound)
	}
	report("capture", "saving the state of the source")
	o, release, err := m.templateOrigin(ctx, op, req)
	if err != nil {
		return image.Template{}, nil, err
	}
	defer release()
	var snap *Snapshot
	if req.Keep != "" {
		if keeps {
			undos.Push("keep no memory", func(ctx context.Context) error { return m.DeleteSnapshot(ctx, req.Keep) })
		}
		kept, err := m.Snapshot(req.Keep)
		if err != nil {
			return image.Template{}, nil, err
		}
		snap = &kept
	}
	t, err := m.exportTemplate(ctx, op, req.Name, o, report)
	if err != nil {
		return image.Template{}, nil, err
	}
	undos.Discard()
	return t, snap, failpoint.Hit("sandbox.template.named")
}

// madeBefore answers a repeated operation as the first time.
func (m *Manager) madeBefore(op Operation, req TemplateRequest) (_ image.Template, _ *Snapshot, done bool, _ error) {
	t, err := m.cfg.Images.Template(req.Name)
	if fault.Is(err, fault.NotFound) {
		return t, nil, false, nil
	}
	if err != nil {
		return t, nil, false, err
	}
	if op.ID == "" || t.Made == nil || *t.Made != (image.Made{By: m.maker(), Operation: op.ID}) {
		return t, nil, false, fault.New(fault.AlreadyExists, "take", "name "+req.Name, "another template has it").
			WithHint("choose another name, or delete that one: roost template rm " + req.Name)
	}
	if req.Keep == "" {
		return t, nil, true, nil
	}
	snap, err := m.Snapshot(req.Keep)
	return t, &snap, true, err
}

// templateOrigin is the capture to take the files out of: the kept snapshot, or a stage that
// release removes.
func (m *Manager) templateOrigin(ctx context.Context, op Operation, req TemplateRequest) (_ origin, release func(), err error) {
	switch {
	case req.Snapshot != "" && req.Keep == "":
		o, err := m.openSnapshot(req.Snapshot)
		return o, func() {}, err
	case req.Snapshot != "":
		err = m.copySnapshot(ctx, req.Snapshot, req.Keep)
	case req.Keep != "":
		_, _, err = m.CreateSnapshot(ctx, op, req.Sandbox, req.Keep)
	default:
		return m.diskOrigin(ctx, op, req.Sandbox)
	}
	if err != nil {
		return origin{}, nil, err
	}
	o, err := m.openSnapshot(req.Keep)
	return o, func() {}, err
}

// diskOrigin takes the disk of a running sandbox, or what a paused one has saved.
func (m *Manager) diskOrigin(ctx context.Context, op Operation, id string) (origin, func(), error) {
	s, ctx, leave, err := m.enter(ctx, id)
	if err != nil {
		return origin{}, nil, err
	}
	defer leave()
	stage := randomHex(10) // as long as an id
	return m.takeOrigin(ctx, s, op, stage, runtime.CaptureOptions{DiskOnly: true}, newStopwatch())
}

// copySnapshot makes another snapshot of the same.
func (m *Manager) copySnapshot(ctx context.Context, from, to string) error {
	o, err := m.openSnapshot(from)
	if err != nil {
		return err
	}
	defer m.stage(to)()
	stage := m.cfg.Data.SnapshotStage(to)
	if err := os.MkdirAll(stage, 0o700); err != nil {
		return fault.Wrap(err, "make", "snapshot directory")
	}
	o.man.Record, err = m.runtimeOf(o.man.Runtime).Link(ctx, o.capture, stage, m.cfg.Data.Sandboxes())
	if err != nil {
		return originError(err)
	}
	return m.publishSnapshot(stage, m.cfg.Data.Snapshot(to), o.man)
}

// exportTemplate starts the origin where no user process runs, and makes the template of what
// its guest agent gives out.
func (m *Manager) exportTemplate(ctx context.Context, op Operation, name string, o origin, report Report) (_ image.Template, err error) {
	rt := m.present(o.man.Runtime)
	if rt == nil {
		return image.Template{}, m.runtimeOf(o.man.Runtime).(*absent).err()
	}
	source, err := m.cfg.Images.TemplateByDigest(o.man.Template.Digest)
	if err != nil {
		return image.Template{}, err
	}
	var undos undo.Stack
	defer func() { err = errors.Join(err, undos.Rollback(ctx)) }()
	report("start", "starting a throw-away copy in "+rt.Name())
	guest, err := m.startThrowAway(ctx, rt, o, source, &undos)
	if err != nil {
		return image.Template{}, err
	}
	tree, err := guest.Export(ctx)
	if err != nil {
		return image.Template{}, err
	}
	defer tree.Close()
	if err := failpoint.Hit("sandbox.template.exported"); err != nil {
		return image.Template{}, err
	}
	return m.cfg.Images.FromTree(ctx, image.FromTreeRequest{
		Name: name, By: m.maker(), Operation: op.ID, Source: source, Tar: tree,
		MaxBytes: int64(o.man.Resources.DiskSizeMB) << 20,
		Report: func(p image.Progress) {
			if !p.Done {
				report(p.Step, p.Detail)
			}
		},
	})
}

// Owns says whether a template is this installation's to offer: one that the host builds, or one
// that was made here.
func (m *Manager) Owns(t image.Template) bool { return t.Made == nil || t.Made.By == m.maker() }

// maker is who this installation is among those that share a directory of images.
func (m *Manager) maker() string { return string(m.cfg.Data) }

// startThrowAway starts an origin in a slot and a directory that no journal names, as a
// template's boot is, and returns its guest. User processes stay frozen, or there are none.
func (m *Manager) startThrowAway(ctx context.Context, rt runtime.Runtime, o origin, t image.Template, undos *undo.Stack) (*guestclient.Client, error) {
	slot, err := m.buildSlot(ctx, PortOf(rt), undos)
	if err != nil {
		return nil, err
	}
	dir, err := m.bootDir(rt, slot, "", undos)
	if err != nil {
		return nil, err
	}
	spec := runtime.Spec{
		ID: templateID, Resources: o.man.Resources, Template: bootable(t),
		RunDir: dir, DiskDir: dir, UID: m.cfg.UIDs.UID(slot.Index()),
	}
	in, token, err := m.launchThrowAway(ctx, rt, o, t, slot, spec)
	if err != nil {
		return nil, err
	}
	undos.Push("stop the copy", in.Stop)
	ctx, cancel := context.WithTimeout(untilExit(ctx, in), bootTimeout)
	defer cancel()
	guest := guestclient.New(slot.Dial, token)
	undos.Push("close guest", func(context.Context) error { guest.Close(); return nil })
	if err := in.Thaw(ctx); err != nil {
		return nil, explain(ctx, err)
	}
	if err := guest.WaitReady(ctx); err != nil {
		return nil, withConsole(explain(ctx, err), in)
	}
	return guest, nil
}

// launchThrowAway restores the origin, or boots from its disk, and says which token its guest
// accepts.
func (m *Manager) launchThrowAway(ctx context.Context, rt runtime.Runtime, o origin, t image.Template, slot *network.Slot, spec runtime.Spec) (runtime.Instance, string, error) {
	var err error
	if o.capture, err = m.shallowCopy(ctx, rt, spec, o.capture); err != nil {
		return nil, "", err
	}
	unplug, err := plug(&spec, slot, rt)
	if err != nil {
		return nil, "", err
	}
	defer unplug()
	if !o.man.DiskOnly {
		in, err := rt.Restore(ctx, spec, o.capture)
		return in, o.man.ControlToken, err
	}
	src, err := m.bootFrom(rt, t, newToken(), spec.RunDir)
	if err != nil {
		return nil, "", err
	}
	src.boots(&spec)
	in, err := rt.Boot(ctx, spec, runtime.BootOptions{From: &o.capture})
	return in, src.controlToken, err
}

// shallowCopy is a capture that a throw-away can start from, by links in its directory: whatever
// has to be merged is written there, and a published snapshot stays what it is.
func (m *Manager) shallowCopy(ctx context.Context, rt runtime.Runtime, spec runtime.Spec, c runtime.Capture) (runtime.Capture, error) {
	dir := filepath.Join(spec.DiskDir, "capture")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return c, fault.Wrap(err, "make", "directory of a copy")
	}
	record, err := rt.Link(ctx, c, dir, m.cfg.Data.Sandboxes())
	if err != nil {
		return c, originError(err)
	}
	c = runtime.Capture{Dir: dir, Record: record}
	record, changed, err := rt.Compact(ctx, spec, c)
	if changed {
		c.Record = record
	}
	return c, err
}

// DeleteTemplate takes a template's name away; its files go when nothing stands on them.
func (m *Manager) DeleteTemplate(ctx context.Context, name string) error {
	_, done, err := m.call(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := m.cfg.Images.Remove(m.maker(), name); err != nil {
		return err
	}
	return m.sweepTemplates()
}

// sweepTemplates removes files of templates that have no name any more and nothing that stands
// on them. While something is being made, it waits for the next time.
func (m *Manager) sweepTemplates() error {
	if !m.making.TryLock() {
		return nil
	}
	defer m.making.Unlock()
	used, err := m.standsOn()
	if err != nil {
		return err
	}
	gone, err := m.cfg.Images.Sweep(m.maker(), used)
	for _, t := range gone {
		m.log.Info("files of a deleted template removed", "template", t.Name, "digest", t.Digest)
	}
	return err
}

// standsOn tells which templates, by digest, sandboxes and snapshots stand on.
func (m *Manager) standsOn() (func(digest string) bool, error) {
	used := map[string]bool{}
	for _, s := range m.list() {
		used[s.journal().Template.Digest] = true
	}
	ids, err := m.snapshotIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		o, err := m.openSnapshot(id)
		if fault.Is(err, fault.NotFound) {
			continue // deleted since
		}
		if err != nil {
			return nil, err // it may stand on any
		}
		used[o.man.Template.Digest] = true
	}
	return func(digest string) bool { return used[digest] }, nil
}
