package sandbox

import (
	"context"
	"fmt"

	"github.com/roosthq/roost/internal/control/store"
)

// plan is a create with nothing left open.
type plan struct {
	template   *store.Template
	snapshotID string // memory to start from; "" for the template's own, or none
	vcpus      int
	memoryMB   int
	diskMB     int
	idleS      int
	runtime    string
	cold       bool
	env        map[string]string
	metadata   map[string]string
}

// plan fills in what a spec leaves open, and checks it against its template and its host.
func (s *Service) plan(ctx context.Context, spec *Spec) (*plan, error) {
	tmpl, err := s.templates.Usable(ctx, or(spec.Template, DefaultTemplate))
	if err != nil {
		return nil, err
	}
	p := &plan{template: tmpl, runtime: spec.Runtime, cold: spec.Cold, env: spec.Env, metadata: spec.Metadata,
		vcpus:    or(spec.VCPUs, or(tmpl.VCPUs, DefaultVCPUs)),
		memoryMB: or(spec.MemoryMB, or(tmpl.MemoryMB, DefaultMemoryMB)),
		diskMB:   or(spec.DiskSizeMB, or(tmpl.DiskSizeMB, max(DefaultDiskSizeMB, needMB(tmpl)))),
		idleS:    DefaultIdleTimeout}
	if spec.IdleTimeoutS != nil {
		p.idleS = *spec.IdleTimeoutS
	}
	if tmpl.Type == store.SnapshotTemplate {
		err = p.ofSnapshot()
	} else {
		err = p.ofBase()
	}
	if err != nil {
		return nil, err
	}
	return p, s.fits(ctx, p)
}

// ofSnapshot starts from a snapshot, whose memory has one size and one runtime. Whether its
// disk can be larger is for the host to say.
func (p *plan) ofSnapshot() error {
	t := p.template
	switch {
	case p.vcpus != t.VCPUs:
		return invalid("vcpus", p.vcpus, fmt.Sprintf("snapshot %s has %d, and what starts from it has as many", t.Name, t.VCPUs))
	case p.memoryMB != t.MemoryMB:
		return invalid("memory_mb", p.memoryMB, fmt.Sprintf("snapshot %s has %d, and what starts from it has as much", t.Name, t.MemoryMB))
	case p.runtime != "" && p.runtime != t.Runtime:
		return invalid("runtime", fmt.Sprintf("%q", p.runtime), fmt.Sprintf("snapshot %s is of %s, and only starts there", t.Name, t.Runtime))
	case p.diskMB < t.DiskSizeMB:
		return invalid("disk_size_mb", p.diskMB, fmt.Sprintf("snapshot %s has %d, and a disk cannot shrink", t.Name, t.DiskSizeMB))
	}
	p.snapshotID, p.runtime = t.SnapshotID, t.Runtime
	return nil
}

// ofBase starts from the memory that was kept with a base when everything about it is the
// same, and else from the base alone.
func (p *plan) ofBase() error {
	t := p.template
	if need := needMB(t); p.diskMB < need {
		return invalid("disk_size_mb", p.diskMB, fmt.Sprintf("template %s needs at least %d", t.Name, need))
	}
	same := p.vcpus == t.VCPUs && p.memoryMB == t.MemoryMB && p.diskMB == t.DiskSizeMB &&
		(p.runtime == "" || p.runtime == t.Runtime)
	if t.SnapshotID != "" && same && !p.cold {
		p.snapshotID, p.runtime = t.SnapshotID, t.Runtime
	}
	return nil
}

// fits checks a plan against its host.
func (s *Service) fits(ctx context.Context, p *plan) error {
	facts, err := s.hosts.Facts(ctx)
	if err != nil {
		return err
	}
	if have := facts.GetMemoryBytes() / mib; have > 0 && uint64(p.memoryMB) > have {
		return invalid("memory_mb", p.memoryMB, fmt.Sprintf("the host has %d", have))
	}
	return nil
}

// needMB is the least disk that a template's files need.
func needMB(t *store.Template) int { return int((t.DiskBytes + mib - 1) / mib) }

// or is v, or the fallback of its zero value.
func or[T comparable](v, fallback T) T {
	var none T
	if v == none {
		return fallback
	}
	return v
}
