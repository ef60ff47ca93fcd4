package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	began := time.Now()
	if err := d.validate(cfg, true); err != nil {
		return nil, err
	}
	vm, err := d.launch(ctx, cfg, nil)
	if err != nil {
		return nil, err
	}
	if err := vm.expect(ctx, "running"); err != nil {
		return nil, vm.abandon(ctx, vm.explain(err))
	}
	d.log.Debug("vm booted", "vm", cfg.ID, "pid", vm.handle.PID, "ms", time.Since(began).Milliseconds())
	return vm, nil
}

// expect checks QEMU's run state.
func (vm *VM) expect(ctx context.Context, want string) error {
	state, err := vm.qmp.Status(ctx)
	if err != nil {
		return err
	}
	if state != want {
		return fault.New(fault.Internal, "start", "vm "+vm.id(), fmt.Sprintf("qemu is %q, not %q", state, want))
	}
	return nil
}
