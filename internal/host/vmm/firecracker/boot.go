package firecracker

import (
	"context"
	"errors"
	"time"

	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
	"github.com/roosthq/roost/internal/undo"
)

// The ids of a VM's devices, as saved state has them.
const (
	diskID = "disk"
	netID  = "eth0"
)

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	began := time.Now()
	if err := validate(cfg, true); err != nil {
		return nil, err
	}
	vm, err := d.launch(ctx, cfg, func(j jail) error {
		if err := j.put(cfg.Kernel, kernelFile); err != nil || cfg.Initrd == "" {
			return err
		}
		return j.put(cfg.Initrd, initrdFile)
	})
	if err != nil {
		return nil, err
	}
	if err := vm.configure(ctx, cfg); err != nil {
		return nil, vm.abandon(ctx, vm.explain(err))
	}
	if err := vm.api.Start(ctx); err != nil {
		return nil, vm.abandon(ctx, vm.explain(err))
	}
	d.log.Debug("vm booted", "vm", cfg.ID, "pid", vm.handle.PID, "ms", time.Since(began).Milliseconds())
	return vm, nil
}

// configure describes the machine, before it starts.
func (vm *VM) configure(ctx context.Context, cfg vmm.Config) error {
	err := vm.api.SetMachine(ctx, api.MachineConfig{
		VCPUs: cfg.VCPUs, MemoryMB: cfg.MemoryMB, CPUTemplate: vm.d.o.CPUTemplate, TrackDirtyPages: true,
	})
	if err != nil {
		return err
	}
	boot := api.BootSource{Kernel: inJail(kernelFile), Args: bootArgs(cfg)}
	if cfg.Initrd != "" {
		boot.Initrd = inJail(initrdFile)
	}
	if err := vm.api.SetBootSource(ctx, boot); err != nil {
		return err
	}
	for range cfg.Drive {
		// Not the root device, or Firecracker would tell the kernel to mount it.
		err := vm.api.AddDrive(ctx, api.Drive{
			ID: diskID, Path: inJail(diskNode), Cache: api.CacheWriteback, Engine: api.EngineSync,
			RateLimiter: limiter(vm.d.o.DiskRate),
		})
		if err != nil {
			return err
		}
	}
	if cfg.TapName != "" {
		rate := limiter(vm.d.o.NetRate)
		err := vm.api.AddNetworkInterface(ctx, api.NetworkInterface{
			ID: netID, Tap: cfg.TapName, MAC: cfg.MAC, RxRateLimiter: rate, TxRateLimiter: rate,
		})
		if err != nil {
			return err
		}
	}
	return vm.api.SetEntropy(ctx, api.Entropy{})
}

// abandon kills a VM whose start failed.
func (vm *VM) abandon(ctx context.Context, cause error) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return errors.Join(cause, vm.Kill(ctx))
}
