package microvm

import (
	"context"
	"errors"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
)

// cgroup is the kind of what a VMM leaves; all other kinds are a disk's.
const cgroup = "cgroup"

// Held implements runtime.Holder: the VMM's cgroups, and the devices that disks are.
func (r *Runtime) Held(ctx context.Context) ([]runtime.Held, error) {
	groups, err := r.groups(ctx)
	devices, derr := r.devices(ctx)
	return append(groups, devices...), errors.Join(err, derr)
}

func (r *Runtime) groups(ctx context.Context) ([]runtime.Held, error) {
	g, ok := r.vmm.(vmm.Grouper)
	if !ok {
		return nil, nil
	}
	found, err := g.Groups(ctx)
	out := make([]runtime.Held, len(found))
	for i, group := range found {
		out[i] = runtime.Held{Kind: cgroup, Name: group.Name, ID: group.ID, UID: group.UID}
	}
	return out, err
}

func (r *Runtime) devices(ctx context.Context) ([]runtime.Held, error) {
	m, ok := r.disk.(disk.Mapper)
	if !ok {
		return nil, nil
	}
	found, err := m.Mapped(ctx)
	var out []runtime.Held
	for _, d := range found {
		if !d.Used { // what stands on it is a disk's, which is told, and takes it along
			out = append(out, runtime.Held{Kind: d.Kind, Name: d.Name, Path: d.Path})
		}
	}
	return out, err
}

// GiveBack implements runtime.Holder.
func (r *Runtime) GiveBack(ctx context.Context, h runtime.Held) error {
	if g, ok := r.vmm.(vmm.Grouper); ok && h.Kind == cgroup {
		return g.RemoveGroup(ctx, h.Name)
	}
	m, ok := r.disk.(disk.Mapper)
	if !ok || h.Kind == cgroup {
		return nil // none of ours can be there
	}
	if h.Path != "" { // of a disk all goes at once
		if err := r.disk.Detach(ctx, disk.Live{Path: h.Path}); err != nil {
			return err
		}
	}
	return m.Unmap(ctx, disk.Mapped{Kind: h.Kind, Name: h.Name, Path: h.Path})
}
