package sandbox

import (
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

// warmDiskMB is the size of the disk that a template's memory is made with: the default, so
// that most sandboxes need no growing, or the template's own where that is larger.
func warmDiskMB(t image.Template) int {
	return max(DefaultDiskSizeMB, int((t.DiskBytes+1<<20-1)>>20))
}

// warmSource is the template's memory for a size; the first start of a size makes it.
func (m *Manager) warmSource(ctx context.Context, r runtime.Resources, t image.Template, report Report) (source, error) {
	key := m.warmKey(r, t)
	w, err := m.cfg.Images.Warm(t, key)
	if fault.Is(err, fault.NotFound) {
		report("warm", fmt.Sprintf("first start of %s with %d vCPU and %d MB: booting once and keeping its memory", t.Name, r.VCPUs, r.MemoryMB))
		w, err = m.makeWarm(ctx, key, r, t)
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

// Warm makes the memory of a size unless it is there.
func (m *Manager) Warm(ctx context.Context, template string, r runtime.Resources) error {
	t, err := m.cfg.Images.Template(template)
	if err != nil {
		return err
	}
	_, err = m.warmSource(ctx, r, t, func(string, string) {})
	return err
}

// warmKey names everything that a template's memory depends on.
func (m *Manager) warmKey(r runtime.Resources, t image.Template) image.WarmKey {
	id := m.cfg.Runtime.Identity()
	return image.WarmKey{
		Image: t.Digest, Kernel: t.Kernel.SHA256, Cmdline: id["cmdline"], Guest: m.cfg.GuestDigest,
		Boot:    t.BootConfig(bootConfig("")).Digest(),
		Runtime: id["driver"] + " " + id["build"] + " " + id["disk"], Machine: id["machine"], CPU: id["cpu"],
		VCPUs: r.VCPUs, MemoryMB: r.MemoryMB,
	}
}

// makeWarm boots the template once for all who ask for the same size at the same time. One
// caller that gives up does not take it from the others.
func (m *Manager) makeWarm(ctx context.Context, key image.WarmKey, r runtime.Resources, t image.Template) (image.Warm, error) {
	done := m.warm.DoChan(key.ID(), func() (any, error) {
		ctx, end, err := m.call(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		defer end()
		ctx, cancel := context.WithTimeout(ctx, bootTimeout)
		defer cancel()
		w, err := m.bootWarm(ctx, key, r, t)
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

func (m *Manager) bootWarm(ctx context.Context, key image.WarmKey, r runtime.Resources, t image.Template) (_ image.Warm, err error) {
	stage, err := m.cfg.Images.StageWarm(key)
	if err != nil {
		return image.Warm{}, err
	}
	var undos undo.Stack
	// A template's VM is always taken down; only its stage may be published.
	defer func() { err = errors.Join(err, undos.Rollback(ctx)) }()
	undos.Push("abort stage", func(context.Context) error { return stage.Abort() })
	slot, err := m.buildSlot(ctx, &undos)
	if err != nil {
		return image.Warm{}, err
	}
	token := newToken()
	record, err := m.captureTemplate(ctx, stage.Dir, slot, token, r, t, &undos)
	if err != nil {
		return image.Warm{}, err
	}
	return stage.Publish(image.Warm{
		Record: record, ControlToken: token, DiskBytes: int64(warmDiskMB(t)) << 20,
	})
}

// buildSlot takes a slot that no journal names; the collector knows it from m.building.
func (m *Manager) buildSlot(ctx context.Context, undos *undo.Stack) (*network.Slot, error) {
	m.starting.RLock()
	defer m.starting.RUnlock()
	slot, err := m.cfg.Network.Acquire(ctx, "template-"+randomHex(4))
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
func (m *Manager) captureTemplate(ctx context.Context, dir string, slot *network.Slot, token string, r runtime.Resources, t image.Template, undos *undo.Stack) ([]byte, error) {
	tap, err := slot.Tap()
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	run, err := os.MkdirTemp(m.cfg.Data.Trash(), "boot-")
	if err != nil {
		return nil, fault.Wrap(err, "make", "boot directory")
	}
	undos.Push("remove boot directory", func(context.Context) error { return os.RemoveAll(run) })
	r.DiskSizeMB = warmDiskMB(t)
	spec := runtime.Spec{
		ID: "template", Resources: r, RunDir: run, DiskDir: dir,
		Initrd: filepath.Join(run, "initrd"), UID: m.cfg.UIDs.UID(slot.Index()),
		Template: runtime.Template{Digest: t.Digest, Kernel: t.KernelPath(), Disk: t.DiskPath(), DiskBytes: t.DiskBytes},
		Port:     runtime.Port{Tap: tap, MAC: network.GuestMAC.String()},
	}
	if err := m.cfg.Images.Initrd(t, m.cfg.GuestPath, t.BootConfig(bootConfig(token)), spec.Initrd); err != nil {
		return nil, err
	}
	in, err := m.cfg.Runtime.Boot(ctx, spec, runtime.BootOptions{Template: true})
	if err != nil {
		return nil, err
	}
	undos.Push("stop template", in.Stop)
	live := untilExit(ctx, in)
	if err := settleTemplate(live, slot, token); err != nil {
		return nil, withConsole(explain(live, err), in)
	}
	if err := in.Freeze(ctx); err != nil {
		return nil, err
	}
	record, _, err := in.Capture(ctx, dir, runtime.CaptureOptions{})
	return record, err
}

// settleTemplate waits for the guest, grows its file system and freezes its (no) user
// processes, and closes all connections, so that no capture holds one.
func settleTemplate(ctx context.Context, slot *network.Slot, token string) error {
	guest := guestclient.New(slot.Dial, token)
	defer guest.Close()
	if err := guest.WaitReady(ctx); err != nil {
		return err
	}
	if _, err := guest.Grow(ctx); err != nil {
		return err
	}
	return guest.Freeze(ctx, freezeSync)
}

// bootSource prepares a cold boot of a sandbox of its own.
func (m *Manager) bootSource(s *Sandbox, t image.Template) (source, error) {
	src := source{controlToken: newToken(), initrd: filepath.Join(s.dir.Run(), "initrd"), grow: true}
	err := m.cfg.Images.Initrd(t, m.cfg.GuestPath, t.BootConfig(bootConfig(src.controlToken)), src.initrd)
	return src, err
}

// bootConfig is what every guest is told before anybody can talk to it.
func bootConfig(token string) image.BootConfig {
	return image.BootConfig{
		ControlToken: token, Hostname: warmHostname, MAC: network.GuestMAC.String(),
		Address: network.GuestPrefix.String(), Gateway: network.GatewayAddr.String(), DNS: network.DNSAddr.String(),
	}
}
