package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

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
	old := drive[len(drive)-2]
	if n, err := vm.writers(old.Path); err != nil || n == 0 {
		return vm.wrap(errors.Join(err, fault.New(fault.FailedPrecondition, "check", old.Path,
			"the vm does not write to it")), "switch disk of")
	}
	return vm.wrap(vm.switchDisk(ctx, drive[len(drive)-1]), "switch disk of")
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
	node, err := openDriveNode(index+1, next)
	if err != nil {
		return err
	}
	defer func() { _ = node.close() }()
	path, err := vm.giveNode(ctx, node, &steps)
	if err != nil {
		return err
	}
	for _, o := range []map[string]any{node.fileOptions(path), node.formatOptions("")} {
		if err := vm.qmp.AddNode(ctx, o); err != nil {
			return err
		}
		name := o["node-name"].(string)
		steps.Push("node "+name, func(ctx context.Context) error { return vm.qmp.RemoveNode(ctx, name) })
	}
	if err := vm.qmp.Snapshot(ctx, fmt.Sprintf("d%d", index), node.formatName()); err != nil {
		return err
	}
	vm.forgetWriters(ctx)
	return nil
}

// giveNode passes a node's descriptors; both get into one set.
func (vm *VM) giveNode(ctx context.Context, n openNode, steps *undo.Stack) (string, error) {
	set := qmp.FD{Set: qmp.NewSet}
	for _, fd := range n.fds {
		got, err := vm.qmp.AddFD(ctx, fd.file, set.Set, fd.label)
		if err != nil {
			return "", err
		}
		set = got
		steps.Push("descriptor "+fd.label, func(ctx context.Context) error { return vm.qmp.RemoveFD(ctx, got) })
	}
	return set.Path(), nil
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
	state, err := vm.qmp.Status(ctx)
	if err != nil || state != "running" {
		vm.writersLeft.Store(true)
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
		if fd, ok := fds[writeLabel(index)]; ok {
			err = errors.Join(err, vm.qmp.RemoveFD(ctx, fd))
		}
	}
	vm.writersLeft.Store(err != nil)
	return err
}

// topIndex is the number of the node that the guest writes to.
func (vm *VM) topIndex(ctx context.Context) (int, error) {
	name, err := vm.qmp.TopNode(ctx, diskID)
	if err != nil {
		return 0, err
	}
	if name == "" {
		return 0, fault.New(fault.NotFound, "find", "top node", "the vm has no disk")
	}
	index, err := strconv.Atoi(strings.TrimPrefix(name, "d"))
	if err != nil || index < 0 {
		return 0, fault.New(fault.FailedPrecondition, "find", "top node", fmt.Sprintf("the disk uses %q", name))
	}
	return index, nil
}

// writers counts the descriptors by which the VMM can write to the file at path.
func (vm *VM) writers(path string) (int, error) {
	want, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	dir := fmt.Sprintf("/proc/%d/fd", vm.handle.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		got, err := os.Stat(dir + "/" + e.Name())
		if err != nil || !os.SameFile(want, got) {
			continue // closed meanwhile, or another file
		}
		// The link's own mode tells how the descriptor was opened.
		if link, err := os.Lstat(dir + "/" + e.Name()); err == nil && link.Mode().Perm()&0o200 != 0 {
			n++
		}
	}
	return n, nil
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
	return vm.wrap(vm.qmp.Resize(ctx, fmt.Sprintf("d%d", index), sizeBytes), "grow disk of")
}
