package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
)

// maxState bounds device state; a VM with disk and network has some 20 KB, and more for each vCPU.
const maxState = 16 << 20

// Restore implements vmm.Driver. The VM has no kernel and initrd: what booted lies in memory.
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, state *os.File, prepare func(vmm.Mapping) error) (vmm.VM, error) {
	began := time.Now()
	if prepare != nil {
		return nil, fault.New(fault.Invalid, "restore", "vm "+cfg.ID, "firecracker's memory cannot be prepared")
	}
	if err := validate(cfg, false); err != nil {
		return nil, err
	}
	vm, err := d.launch(ctx, cfg, func(j jail) error {
		if err := copyState(state, j.path(savedFile)); err != nil {
			return err
		}
		if cfg.Memory.Pager != "" {
			return j.putPager(cfg.Memory.Pager)
		}
		return j.putMemory(cfg.Memory.Path)
	})
	if err != nil {
		return nil, err
	}
	started := time.Since(began)
	if err := vm.load(ctx, cfg); err != nil {
		return nil, vm.abandon(ctx, vm.explain(err))
	}
	d.log.Debug("vm restored", "vm", cfg.ID, "pid", vm.handle.PID,
		"start_ms", started.Milliseconds(), "ms", time.Since(began).Milliseconds())
	return vm, nil
}

func (vm *VM) load(ctx context.Context, cfg vmm.Config) error {
	load := api.SnapshotLoad{
		State:           inJail(savedFile),
		Memory:          api.MemoryBackend{Type: api.MemoryFile, Path: inJail(memoryFile)},
		TrackDirtyPages: true,
	}
	if cfg.Memory.Pager != "" {
		load.Memory = api.MemoryBackend{Type: api.MemoryUffd, Path: inJail(pagerSocket)}
	}
	if cfg.TapName != "" {
		load.NetworkOverrides = []api.NetworkOverride{{ID: netID, Tap: cfg.TapName}}
	}
	if cfg.Memory.Pager != "" {
		if err := vm.jail.putUserfaultfd(); err != nil {
			return err
		}
	}
	if err := vm.api.LoadSnapshot(ctx, load); err != nil {
		return err
	}
	// After a load the vCPUs are paused, and the devices write into memory until this.
	if err := vm.api.Pause(ctx); err != nil {
		return err
	}
	if err := vm.paused(ctx); err != nil {
		return err
	}
	if err := vm.limitRates(ctx, cfg); err != nil {
		return err
	}
	// Neither is looked at again. The memory file stays mapped.
	for _, name := range []string{savedFile, pagerSocket} {
		if err := os.Remove(vm.jail.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fault.Wrap(err, "remove", name)
		}
	}
	return nil
}

// copyState puts saved state where the VM can read it: the caller's file has an offset that
// concurrent restores would share, and is root's.
func copyState(state *os.File, to string) error {
	if state == nil {
		return fault.New(fault.Invalid, "load", "device state", "no file given")
	}
	info, err := state.Stat()
	if err != nil {
		return fault.Wrap(err, "load", "device state")
	}
	if info.Size() == 0 || info.Size() > maxState {
		return fault.New(fault.Invalid, "load", "device state "+state.Name(),
			fmt.Sprintf("%d bytes are not within 1 and %d", info.Size(), maxState))
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fault.Wrap(err, "load", "device state")
	}
	_, err = io.Copy(f, io.NewSectionReader(state, 0, info.Size()))
	return fault.Wrap(errors.Join(err, f.Chmod(0o444), f.Close()), "load", "device state")
}
