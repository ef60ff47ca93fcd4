package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
	"github.com/roosthq/roost/internal/undo"
)

// warmHostname is what a template's VM is called before it becomes a sandbox.
const warmHostname = "roost"

// warmSize is the size that a template's memory is made with. Where a disk can grow after a
// restore it has the default size, so that most sandboxes need no growing, or the template's own
// where that is larger; elsewhere it has the size that is asked for.
func warmSize(rt runtime.Runtime, r runtime.Resources, t image.Template) runtime.Resources {
	if !rt.Capabilities().FixedDisk {
		r.DiskSizeMB = max(DefaultDiskSizeMB, int((t.DiskBytes+1<<20-1)>>20))
	}
	return r
}

// warmSource is the template's memory for a runtime and size; the first start makes it.
func (m *Manager) warmSource(ctx context.Context, rt runtime.Runtime, r runtime.Resources, t image.Template, report Report) (source, error) {
	size := warmSize(rt, r, t)
	key := m.warmKey(rt, size, t)
	w, err := m.cfg.Images.Warm(t, key)
	if fault.Is(err, fault.NotFound) {
		report("warm", firstStart(rt, size, t))
		w, err = m.makeWarm(ctx, rt, key, size, t)
	}
	if err != nil {
		return source{}, err
	}
	return source{
		capture:      &runtime.Capture{Dir: w.Dir, Record: w.Record},
		controlToken: w.ControlToken,
		grow:         int64(r.DiskSizeMB)<<20 > w.DiskBytes,
	}, nil
}

// firstStart says why a start takes longer than the next one of its kind.
func firstStart(rt runtime.Runtime, r runtime.Resources, t image.Template) string {
	size := fmt.Sprintf("%d vCPU and %d MB", r.VCPUs, r.MemoryMB)
	if rt.Capabilities().FixedDisk {
		size = fmt.Sprintf("%d vCPU, %d MB and a disk of %d MB", r.VCPUs, r.MemoryMB, r.DiskSizeMB)
	}
	return fmt.Sprintf("first start of %s in %s with %s: booting once and keeping its memory", t.Name, rt.Name(), size)
}

// Warm makes the memory of a size in the host's best runtime unless it is there.
func (m *Manager) Warm(ctx context.Context, template string, r runtime.Resources) error {
	t, err := m.cfg.Images.Template(template)
	if err != nil {
		return err
	}
	rt, err := m.choose("")
	if err != nil {
		return err
	}
	_, err = m.warmSource(ctx, rt, r, t, func(string, string) {})
	return err
}

// warmKey names everything that a template's memory depends on.
func (m *Manager) warmKey(rt runtime.Runtime, r runtime.Resources, t image.Template) image.WarmKey {
	id := rt.Identity()
	key := image.WarmKey{
		Image: t.Digest, Kernel: t.Kernel.SHA256, Cmdline: id["cmdline"], Guest: m.cfg.GuestDigest,
		Boot:    t.BootConfig(bootConfig("")).Digest(),
		Runtime: id["driver"] + " " + id["build"] + " " + id["disk"], Machine: id["machine"], CPU: id["cpu"],
		VCPUs: r.VCPUs, MemoryMB: r.MemoryMB,
	}
	if rt.Capabilities().FixedDisk {
		key.DiskMB = r.DiskSizeMB
	}
	return key
}

// makeWarm boots the template once for all who ask for the same size at the same time. One
// caller that gives up does not take it from the others.
func (m *Manager) makeWarm(ctx context.Context, rt runtime.Runtime, key image.WarmKey, r runtime.Resources, t image.Template) (image.Warm, error) {
	done := m.warm.DoChan(key.ID(), func() (any, error) {
		ctx, end, err := m.call(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		defer end()
		// The callers', which hold it too, may all have given up before this is done.
		m.making.RLock()
		defer m.making.RUnlock()
		if _, err := m.cfg.Images.TemplateByDigest(t.Digest); err != nil {
			return nil, err // removed before this began
		}
		ctx, cancel := context.WithTimeout(ctx, bootTimeout)
		defer cancel()
		w, err := m.bootWarm(ctx, rt, key, r, t)
		return w, explain(ctx, err)
	})
	select {
	case <-ctx.Done():
		return image.Warm{}, fault.Wrap(ctx.Err(), "wait for", "template memory")
	case res := <-done:
		if res.Err != nil {
			return image.Warm{}, fault.Wrap(res.Err, "make memory of", "template "+t.Name)
		}
		return res.Val.(image.Warm), nil
	}
}

func (m *Manager) bootWarm(ctx context.Context, rt runtime.Runtime, key image.WarmKey, r runtime.Resources, t image.Template) (_ image.Warm, err error) {
	stage, err := m.cfg.Images.StageWarm(key)
	if err != nil {
		return image.Warm{}, err
	}
	var undos undo.Stack
	// A template's VM is always taken down; only its stage may be published.
	defer func() { err = errors.Join(err, undos.Rollback(ctx)) }()
	undos.Push("abort stage", func(context.Context) error { return stage.Abort() })
	slot, err := m.buildSlot(ctx, PortOf(rt), &undos)
	if err != nil {
		return image.Warm{}, err
	}
	token := newToken()
	record, err := m.captureTemplate(ctx, rt, stage.Dir, slot, token, r, t, &undos)
	if err != nil {
		return image.Warm{}, err
	}
	return stage.Publish(image.Warm{
		Record: record, ControlToken: token, DiskBytes: int64(r.DiskSizeMB) << 20,
	})
}

// buildSlot takes a slot that no journal names; the collector knows it from m.building.
func (m *Manager) buildSlot(ctx context.Context, kind network.PortKind, undos *undo.Stack) (*network.Slot, error) {
	m.starting.RLock()
	defer m.starting.RUnlock()
	slot, err := m.cfg.Network.Acquire(ctx, "template-"+randomHex(4), kind)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.building[slot.Index()] = true
	m.mu.Unlock()
	undos.Push("release slot", func(ctx context.Context) error {
		// What will not die keeps its number, and so its uid.
		if err := uids.Kill(ctx, m.cfg.UIDs.UID(slot.Index())); err != nil {
			return err
		}
		m.mu.Lock()
		delete(m.building, slot.Index())
		m.mu.Unlock()
		m.release(ctx, slot)
		return nil
	})
	return slot, nil
}

// captureTemplate boots the template until its guest answers and captures it.
func (m *Manager) captureTemplate(ctx context.Context, rt runtime.Runtime, dir string, slot *network.Slot, token string, r runtime.Resources, t image.Template, undos *undo.Stack) ([]byte, error) {
	run, err := m.bootDir(rt, slot, dir, undos)
	if err != nil {
		return nil, err
	}
	src, err := m.bootFrom(rt, t, token, run)
	if err != nil {
		return nil, err
	}
	spec := runtime.Spec{
		ID: templateID, Resources: r, RunDir: run, DiskDir: dir, UID: m.cfg.UIDs.UID(slot.Index()),
		Template: bootable(t),
	}
	src.boots(&spec)
	unplug, err := plug(&spec, slot, rt)
	if err != nil {
		return nil, err
	}
	defer unplug()
	in, err := rt.Boot(ctx, spec, runtime.BootOptions{Template: true})
	if err != nil {
		return nil, err
	}
	undos.Push("stop template", in.Stop)
	live := untilExit(ctx, in)
	if err := settleTemplate(live, slot, token, src.grow); err != nil {
		return nil, withConsole(explain(live, err), in)
	}
	if err := in.Freeze(ctx); err != nil {
		return nil, err
	}
	record, _, err := in.Capture(ctx, dir, runtime.CaptureOptions{})
	if err != nil {
		return nil, err
	}
	// Before its files get other names: what a disk has on the host is found by them.
	return record, in.Stop(ctx)
}

// bootDir makes the directory of a boot that no journal names, with a note of it for the agent
// after a crash. disk is where its disk will lie; "" is in the same.
func (m *Manager) bootDir(rt runtime.Runtime, slot *network.Slot, disk string, undos *undo.Stack) (string, error) {
	dir, err := os.MkdirTemp(m.cfg.Data.Trash(), "boot-")
	if err != nil {
		return "", fault.Wrap(err, "make", "boot directory")
	}
	undos.Push("remove boot directory", func(context.Context) error { return os.RemoveAll(dir) })
	return dir, bootNote{
		Runtime: rt.Name(), UID: m.cfg.UIDs.UID(slot.Index()), DiskDir: cmp.Or(disk, dir), dir: dir,
	}.write()
}

// settleTemplate waits for the guest, grows its file system where it has to and freezes its (no)
// user processes, and closes all connections, so that no capture holds one.
func settleTemplate(ctx context.Context, slot *network.Slot, token string, grow bool) error {
	guest := guestclient.New(slot.Dial, token)
	defer guest.Close()
	if err := guest.WaitReady(ctx); err != nil {
		return err
	}
	if grow {
		if _, err := guest.Grow(ctx); err != nil {
			return err
		}
	}
	return guest.Freeze(ctx, freezeSync)
}

// bootSource prepares a cold boot of a sandbox of its own.
func (m *Manager) bootSource(s *Sandbox, t image.Template) (source, error) {
	return m.bootFrom(s.rt, t, newToken(), s.dir.Run())
}

// bootFrom brings the guest agent to a boot: in an initramfs in dir, or as a program.
func (m *Manager) bootFrom(rt runtime.Runtime, t image.Template, token, dir string) (source, error) {
	caps, cfg := rt.Capabilities(), t.BootConfig(bootConfig(token))
	src := source{controlToken: token, grow: !caps.FixedDisk}
	if !caps.GuestBoots {
		src.guest = runtime.Guest{
			Path: m.cfg.GuestPath, Token: token, Hostname: cfg.Hostname, DNS: cfg.DNS, DefaultUser: t.DefaultUser,
		}
		return src, nil
	}
	if caps.ELFKernel {
		// One of an earlier Roost is uncompressed by its first boot of this kind.
		with, err := m.cfg.Images.WithKernelELF(t)
		if err != nil {
			return source{}, err
		}
		src.kernelELF = with.KernelELFPath()
	}
	src.initrd = filepath.Join(dir, "initrd")
	return src, m.cfg.Images.Initrd(t, m.cfg.GuestPath, cfg, src.initrd)
}

// boots puts what a boot needs into the spec of one start.
func (src source) boots(spec *runtime.Spec) {
	spec.Initrd, spec.Guest, spec.Template.KernelELF = src.initrd, src.guest, src.kernelELF
}

// bootable is a template as a runtime takes it.
func bootable(t image.Template) runtime.Template {
	return runtime.Template{
		Digest: t.Digest, Kernel: t.KernelPath(), Disk: t.DiskPath(), DiskBytes: t.DiskBytes, Tree: t.TreePath(),
	}
}

// bootConfig is what every guest is told before anybody can talk to it.
func bootConfig(token string) image.BootConfig {
	return image.BootConfig{
		ControlToken: token, Hostname: warmHostname, MAC: network.GuestMAC.String(),
		Address: network.GuestPrefix.String(), Gateway: network.GatewayAddr.String(), DNS: network.DNSAddr.String(),
	}
}
