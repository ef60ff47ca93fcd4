package qemu

import (
	"context"
	"errors"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/qemu/qmp"
	"github.com/roosthq/roost/internal/undo"
)

// SwitchDisk implements vmm.VM.
func (vm *VM) SwitchDisk(ctx context.Context, drive []vmm.Node) error {
	if err := vm.usable("switch disk of"); err != nil {
		return err
	}
	if err := checkSwitch(drive); err != nil {
		return vm.wrap(err, "switch disk of")
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	return vm.wrap(vm.switchOnce(ctx, drive[len(drive)-2], drive[len(drive)-1]), "switch disk of")
}

// switchOnce switches from old to next unless an earlier switch has, whose end nobody saw.
func (vm *VM) switchOnce(ctx context.Context, old, next vmm.Node) error {
	now, err := vm.writesTo(ctx)
	if err != nil {
		return err
	}
	if isFile(now, next.Path) {
		vm.forgetWriters(ctx)
		return nil
	}
	if !isFile(now, old.Path) {
		return fault.New(fault.FailedPrecondition, "check", old.Path, "the vm does not write to it")
	}
	return vm.switchDisk(ctx, next)
}

func checkSwitch(drive []vmm.Node) error {
	if len(drive) < 2 {
		return invalid("drive", len(drive), "a switch needs the old top and the new one")
	}
	if err := checkDrive(drive); err != nil {
		return err
	}
	if top := drive[len(drive)-1]; top.Format != "qcow2" {
		return invalid("drive node", top.Path, "the new top must be qcow2")
	}
	return nil
}

// switchDisk opens the new top without a backing node and lets QEMU put it over the old one:
// that is one moment between two guest writes.
func (vm *VM) switchDisk(ctx context.Context, next vmm.Node) (err error) {
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, steps.Rollback(ctx))
		}
	}()
	index, err := vm.topIndex(ctx)
	if err != nil {
		return err
	}
	// What an earlier switch could not take back would be in this one's way.
	if err := vm.removeLeftovers(ctx); err != nil {
		return err
	}
	node, err := openDriveNode(index+1, next)
	if err != nil {
		return err
	}
	defer func() { _ = node.close() }()
	steps.Push("disk node", vm.removeLeftovers)
	// QEMU keeps what is taken away while it is paused; the next Resume does it.
	vm.writersLeft.Store(true)
	if err := vm.addNode(ctx, node); err != nil {
		return err
	}
	if err := vm.cover(ctx, formatNode(index), node.formatName()); err != nil {
		return err
	}
	if failpoint.Hit("qemu.switch.done") == nil { // it is done: nothing fails it any more
		vm.forgetWriters(ctx)
	}
	return nil
}

// addNode gives QEMU a drive's node, which nothing uses yet.
func (vm *VM) addNode(ctx context.Context, n openNode) error {
	path, err := vm.giveNode(ctx, n)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("qemu.switch.given"); err != nil {
		return err
	}
	if err := vm.qmp.AddNode(ctx, n.fileOptions(path)); err != nil {
		return err
	}
	if err := failpoint.Hit("qemu.switch.file"); err != nil {
		return err
	}
	if err := vm.qmp.AddNode(ctx, n.formatOptions("")); err != nil {
		return err
	}
	return failpoint.Hit("qemu.switch.node")
}

// giveNode passes a node's descriptors; both get into one set.
func (vm *VM) giveNode(ctx context.Context, n openNode) (string, error) {
	set := qmp.FD{Set: qmp.NewSet}
	for _, fd := range n.fds {
		got, err := vm.qmp.AddFD(ctx, fd.file, set.Set, fd.label)
		if err != nil {
			return "", err
		}
		set = got
		if err := failpoint.Hit("qemu.switch.half"); err != nil {
			return "", err
		}
	}
	return set.Path(), nil
}

// cover puts node next over old. A QEMU that answers too late may have done it all the same, and
// what it is asked next it does after that.
func (vm *VM) cover(ctx context.Context, old, next string) error {
	err := vm.qmp.Snapshot(ctx, old, next)
	if err == nil {
		return nil
	}
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	if top, lookErr := vm.qmp.TopNode(ctx, diskID); lookErr == nil && top == next {
		return nil
	}
	return err
}

// forgetWriters takes the writable descriptors of all nodes below the top away from QEMU, so
// that an escaped VM cannot change what others will stand on. QEMU closes them only while the VM
// runs: of a paused one the next Resume does it. The switch has happened: this cannot fail it.
func (vm *VM) forgetWriters(ctx context.Context) {
	if err := vm.removeWriters(ctx); err != nil {
		vm.log.Warn("sealed disk nodes stay writable for their vmm", "vm", vm.id(), "error", err)
	}
}

func (vm *VM) removeWriters(ctx context.Context) error {
	vm.writersLeft.Store(true)
	if err := vm.removeLeftovers(ctx); err != nil {
		return err
	}
	state, err := vm.qmp.Status(ctx)
	if err != nil || state != "running" {
		return err
	}
	top, err := vm.topIndex(ctx)
	if fault.Is(err, fault.NotFound) { // no disk
		vm.writersLeft.Store(false)
		return nil
	}
	if err != nil {
		return err
	}
	fds, err := vm.qmp.FDs(ctx)
	if err != nil {
		return err
	}
	for index := range top {
		for _, fd := range fds {
			if fd.Label == writeLabel(index) {
				err = errors.Join(err, vm.qmp.RemoveFD(ctx, fd.FD))
			}
		}
	}
	vm.writersLeft.Store(err != nil)
	return err
}

// GrowDisk implements vmm.VM.
func (vm *VM) GrowDisk(ctx context.Context, sizeBytes int64) error {
	if err := vm.usable("grow disk of"); err != nil {
		return err
	}
	if sizeBytes <= 0 || sizeBytes%512 != 0 {
		return vm.wrap(invalid("size_bytes", sizeBytes, "not a positive multiple of 512"), "grow disk of")
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	index, err := vm.topIndex(ctx)
	if err != nil {
		return vm.wrap(err, "grow disk of")
	}
	return vm.wrap(vm.qmp.Resize(ctx, formatNode(index), sizeBytes), "grow disk of")
}
