package qemu

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm/qemu/qmp"
)

// SaveState implements vmm.VM. QEMU writes to a memfd that is thrown away; what it wrote is
// bounded and copied into w.
func (vm *VM) SaveState(ctx context.Context, w *os.File) error {
	if err := vm.usable("save state of"); err != nil {
		return err
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	if err := vm.expect(ctx, "paused"); err != nil {
		return &fault.Error{Kind: fault.FailedPrecondition, Op: "save state of", Object: "vm " + vm.id(), Err: err}
	}
	return vm.wrap(vm.saveState(ctx, w), "save state of")
}

func (vm *VM) saveState(ctx context.Context, w *os.File) error {
	own, err := memfd("vm-state")
	if err != nil {
		return err
	}
	defer own.Close()
	// QEMU takes a descriptor only if its access mode is the one that it opens with.
	w1, err := os.OpenFile(selfFD(int(own.Fd())), os.O_WRONLY, 0)
	if err != nil {
		return fault.Wrap(err, "open", "memfd")
	}
	defer w1.Close()
	fd, err := vm.qmp.AddFD(ctx, w1, qmp.NewSet, "state")
	if err != nil {
		return err
	}
	err = vm.qmp.SaveDeviceState(ctx, fd.Path())
	if rerr := vm.qmp.RemoveFD(ctx, fd); err == nil {
		err = rerr
	}
	if err != nil {
		return err
	}
	info, err := own.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 || info.Size() > maxState {
		return fault.New(fault.Internal, "read", "device state", fmt.Sprintf("%d bytes", info.Size()))
	}
	_, err = io.Copy(w, io.NewSectionReader(own, 0, info.Size()))
	return fault.Wrap(err, "write", "device state")
}
