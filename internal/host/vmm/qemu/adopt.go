package qemu

import (
	"context"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
)

// Adopt implements vmm.Driver.
func (d *Driver) Adopt(ctx context.Context, h vmm.Handle) (vmm.VM, error) {
	if h.Driver != Name {
		return nil, fault.New(fault.Invalid, "adopt", "vm", "it belongs to driver "+h.Driver)
	}
	if h.BootID != process.BootID() {
		return nil, fault.New(fault.NotFound, "adopt", "vm", "the host was rebooted since")
	}
	proc, err := process.Open(h.PID, h.StartTime)
	if err != nil {
		return nil, fault.Wrap(err, "adopt", "vm")
	}
	vm := newVM(d.log, proc, nil, h)
	if err := vm.recognise(); err != nil {
		proc.Release()
		return nil, err
	}
	if err := vm.connect(ctx); err != nil {
		proc.Release()
		return nil, vm.wrap(err, "adopt")
	}
	go vm.watch()
	if _, err := vm.qmp.Status(ctx); err != nil {
		vm.Detach()
		return nil, vm.wrap(err, "adopt")
	}
	// A switch of the disk may have been the last that the other agent did, or did in part. What
	// cannot be taken away now is before the next switch, or with the next Resume.
	vm.change.Lock()
	defer vm.change.Unlock()
	vm.forgetWriters(ctx)
	return vm, nil
}

// recognise checks that the process is the one in the handle in more than its number.
func (vm *VM) recognise() error {
	uid, err := vm.proc.UID()
	if err != nil || uid != vm.handle.UID {
		return fault.New(fault.NotFound, "adopt", "vm "+vm.id(), "its process has another uid")
	}
	if _, err := vm.Mapping(); err != nil {
		return &fault.Error{Kind: fault.NotFound, Op: "adopt", Object: "vm " + vm.id(), Err: err}
	}
	return nil
}
