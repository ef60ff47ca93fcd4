package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// origin is a capture that a new sandbox starts from: a snapshot, or what a fork took of its
// source.
type origin struct {
	capture runtime.Capture
	man     manifest
}

// planSnapshot checks a create from a snapshot: what the capture fixes cannot be chosen.
func (m *Manager) planSnapshot(req CreateRequest) (plan, error) {
	o, err := m.openSnapshot(req.Snapshot)
	if err != nil {
		return plan{}, err
	}
	if req.Runtime != "" && req.Runtime != o.man.Runtime {
		return plan{}, badField("runtime", req.Runtime, "the snapshot was taken in "+o.man.Runtime+" and starts in no other")
	}
	return m.planOrigin(req, o)
}

func (m *Manager) planOrigin(req CreateRequest, o origin) (plan, error) {
	rt := m.present(o.man.Runtime)
	if rt == nil {
		return plan{}, m.runtimeOf(o.man.Runtime).(*absent).err()
	}
	fillIn(&req.Resources, o.man.Resources)
	if err := fits(req.Resources, o.man.Resources, rt.Capabilities()); err != nil {
		return plan{}, err
	}
	if req.Template == "" {
		req.Template = o.man.TemplateName
	}
	envs := maps.Clone(o.man.Envs)
	if envs == nil {
		envs = map[string]string{}
	}
	maps.Copy(envs, req.Envs)
	req.Envs = envs
	return plan{req: req, rt: rt, origin: &o}, nil
}

// fits refuses sizes that a sandbox of a capture cannot have.
func fits(want, have runtime.Resources, caps runtime.Capabilities) error {
	own := func(n int) string { return fmt.Sprintf("a snapshot keeps its own, which is %d", n) }
	switch {
	case want.VCPUs != have.VCPUs:
		return badField("vcpus", want.VCPUs, own(have.VCPUs))
	case want.MemoryMB != have.MemoryMB:
		return badField("memory_mb", want.MemoryMB, own(have.MemoryMB))
	case caps.FixedDisk && want.DiskSizeMB != have.DiskSizeMB:
		return badField("disk_size_mb", want.DiskSizeMB, own(have.DiskSizeMB))
	case want.DiskSizeMB < have.DiskSizeMB || want.DiskSizeMB > 1<<20:
		return badField("disk_size_mb", want.DiskSizeMB, fmt.Sprintf("the snapshot needs at least %d, and 1048576 is the most", have.DiskSizeMB))
	}
	return nil
}

// inherit makes an origin the first capture of a new sandbox: its own by hard links, so that
// what becomes of the origin afterwards does not matter. The sandbox is then started as a resume
// starts one.
func (m *Manager) inherit(ctx context.Context, s *Sandbox, o origin, cold bool) (source, error) {
	const first = 1
	stage := s.dir.CaptureStage(first)
	if err := os.MkdirAll(stage, 0o700); err != nil {
		return source{}, fault.Wrap(err, "make", "capture directory")
	}
	record, err := s.rt.Link(ctx, o.capture, stage, m.cfg.Data.Sandboxes())
	if err != nil {
		return source{}, originError(err)
	}
	if err := failpoint.Hit("sandbox.from.linked"); err != nil {
		return source{}, err
	}
	// As it was when it was saved; the sandbox's journal has what it shall be.
	man := o.man
	man.SandboxID, man.Record = s.ID(), record
	if err := writeManifest(stage, man); err != nil {
		return source{}, err
	}
	if err := os.Rename(stage, s.dir.Capture(first)); err != nil {
		return source{}, fault.Wrap(err, "publish", "capture")
	}
	if err := s.update(false, func(j *journal) { j.Capture, j.DiskIndex = first, 1 }); err != nil {
		return source{}, err
	}
	if err := failpoint.Hit("sandbox.from.published"); err != nil {
		return source{}, err
	}
	return m.captureSource(ctx, s, cold)
}

// originError tells a snapshot that went away while a sandbox was made of it from a damaged one.
func originError(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.Aborted, "read", "snapshot", "it was deleted, or its files are gone: "+err.Error())
	}
	return err
}

// captureSource is how a sandbox starts from its current capture: by its memory, or by a boot
// from its disk.
func (m *Manager) captureSource(ctx context.Context, s *Sandbox, cold bool) (source, error) {
	j := s.journal()
	c, man, err := readCapture(s.dir.Capture(j.Capture))
	if err == nil {
		c, err = m.compact(ctx, s, c, man)
	}
	if err != nil {
		return source{}, err
	}
	if !cold && !man.DiskOnly {
		return source{
			capture: &c, controlToken: man.ControlToken,
			grow: man.Resources.DiskSizeMB != 0 && j.Resources.DiskSizeMB > man.Resources.DiskSizeMB,
		}, nil
	}
	t, err := m.cfg.Images.TemplateByDigest(j.Template.Digest)
	if err != nil {
		return source{}, err
	}
	src, err := m.bootSource(s, t)
	src.from = &c
	return src, err
}
