package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
)

// SwitchDisk implements vmm.VM.
func (vm *VM) SwitchDisk(ctx context.Context, drive []vmm.Node) error {
	if err := vm.usable("switch disk of"); err != nil {
		return err
	}
	if len(drive) != 1 {
		return vm.wrap(invalid("drive", len(drive), "firecracker takes one node, no chain"), "switch disk of")
	}
	if err := checkNode(drive[0]); err != nil {
		return vm.wrap(err, "switch disk of")
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	return vm.wrap(vm.switchOnce(ctx, drive[0]), "switch disk of")
}

// switchOnce switches unless an earlier switch has, whose end nobody saw.
func (vm *VM) switchOnce(ctx context.Context, next vmm.Node) error {
	now, err := vm.writesTo()
	if err != nil {
		return err
	}
	if sameDisk(now, next.Path) {
		return vm.settleDisk(ctx)
	}
	// The limit of the files that it may write was set for the one or the other.
	if at, err := os.Stat(next.Path); err != nil || isBlock(at) != isBlock(now) {
		return fault.New(fault.FailedPrecondition, "check", next.Path, "not of the kind (device or file) that the vm has")
	}
	if err := vm.paused(ctx); err != nil {
		return err
	}
	return vm.switchDisk(ctx, next)
}

// switchDisk gives the VMM the new drive under another name first: what it cannot open it does not
// take, and writes to the old one. Then the new one gets the name that saved state has.
func (vm *VM) switchDisk(ctx context.Context, next vmm.Node) error {
	if err := vm.settleDisk(ctx); err != nil {
		return err
	}
	if err := vm.jail.putDrive(next, nextNode); err != nil {
		return errors.Join(err, vm.dropNext())
	}
	if err := failpoint.Hit("firecracker.switch.node"); err != nil {
		return errors.Join(err, vm.dropNext())
	}
	vm.stale = true
	err := vm.api.PatchDrive(ctx, api.DrivePatch{ID: diskID, Path: inJail(nextNode)})
	// A VMM that answers too late may have done it all the same, or do it yet: see findNode.
	if now, lookErr := vm.writesTo(); err != nil && (lookErr != nil || !sameDisk(now, next.Path)) {
		if lookErr != nil {
			return errors.Join(err, lookErr)
		}
		return errors.Join(err, vm.dropNext())
	}
	if failpoint.Hit("firecracker.switch.done") == nil {
		vm.logSettle(vm.settleDisk(ctx)) // it is done: nothing fails it any more
	}
	return nil
}

func (vm *VM) logSettle(err error) {
	if err != nil {
		vm.log.Warn("a vm's disk has not the name yet that it is saved by", "vm", vm.id(), "error", err)
	}
}

// dropNext takes away a drive that the VMM did not take.
func (vm *VM) dropNext() error {
	vm.jail.takeBack(nextNode)
	err := os.Remove(vm.jail.path(nextNode))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fault.Wrap(err, "remove", nextNode)
}

// settleDisk ends or takes back what a switch left: afterwards the disk that the VMM writes to has
// the name that saved state has, and there is no other.
func (vm *VM) settleDisk(ctx context.Context) error {
	switched, err := vm.inUse(nextNode)
	if err != nil {
		return err // not to take away what it uses
	}
	if switched {
		vm.stale = true
		vm.jail.takeBack(diskNode)
		if err := os.Rename(vm.jail.path(nextNode), vm.jail.path(diskNode)); err != nil {
			return fault.Wrap(err, "rename", nextNode)
		}
		if err := failpoint.Hit("firecracker.switch.named"); err != nil {
			return err
		}
	}
	return errors.Join(vm.dropNext(), vm.knowDisk(ctx))
}

// knowDisk makes the VMM open its disk by the name that a restore will have.
func (vm *VM) knowDisk(ctx context.Context) error {
	if !vm.stale {
		return nil
	}
	switched, err := vm.inUse(nextNode)
	if err != nil {
		return err
	}
	if switched {
		if err := os.Rename(vm.jail.path(nextNode), vm.jail.path(diskNode)); err != nil {
			return fault.Wrap(err, "rename", nextNode)
		}
	}
	if _, err := os.Lstat(vm.jail.path(diskNode)); errors.Is(err, os.ErrNotExist) {
		vm.stale = false // it has no disk
		return nil
	}
	if err := vm.findNode(); err != nil {
		return err
	}
	if err := vm.api.PatchDrive(ctx, api.DrivePatch{ID: diskID, Path: inJail(diskNode)}); err != nil {
		return err
	}
	vm.stale = false
	return nil
}

// findNode makes the jail's node that of the device that the VMM writes to. It is another's when the
// VMM took the new device after it was given up on, and its node removed.
func (vm *VM) findNode() error {
	now, err := vm.writesTo()
	if err != nil || sameDisk(now, vm.jail.path(diskNode)) {
		return err
	}
	if !isBlock(now) {
		return fault.New(fault.Internal, "check", "disk", "the VMM writes to another than its jail has")
	}
	if err := vm.dropNext(); err != nil {
		return err
	}
	if err := vm.jail.putDevice(now.Sys().(*syscall.Stat_t).Rdev, nextNode); err != nil {
		return errors.Join(err, vm.dropNext())
	}
	return fault.Wrap(os.Rename(vm.jail.path(nextNode), vm.jail.path(diskNode)), "rename", nextNode)
}

// inUse tells whether the VMM writes to a node of its jail.
func (vm *VM) inUse(name string) (bool, error) {
	now, err := vm.writesTo()
	if fault.Is(err, fault.NotFound) { // it has no disk
		return false, nil
	}
	return err == nil && sameDisk(now, vm.jail.path(name)), err
}

// sameDisk tells whether path is the device, by whatever node, or the file that info is of.
func sameDisk(info os.FileInfo, path string) bool {
	at, err := os.Stat(path)
	if err != nil {
		return false
	}
	if isBlock(info) && isBlock(at) {
		return info.Sys().(*syscall.Stat_t).Rdev == at.Sys().(*syscall.Stat_t).Rdev
	}
	return os.SameFile(info, at)
}

// WritesTo implements vmm.VM.
func (vm *VM) WritesTo(context.Context) (os.FileInfo, error) {
	if err := vm.usable("find disk of"); err != nil {
		return nil, err
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	info, err := vm.writesTo()
	if err != nil {
		return nil, vm.wrap(err, "find disk of")
	}
	if isBlock(info) {
		return hostNode(info), nil
	}
	return info, nil
}

// writesTo asks the kernel what the VMM has open for writing: of devices and files that is its
// disk alone, when it does not save.
func (vm *VM) writesTo() (os.FileInfo, error) {
	dir := fmt.Sprintf("/proc/%d/fd", vm.handle.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(err, "look at", "open files")
	}
	var found os.FileInfo
	for _, e := range entries {
		info := openForWriting(filepath.Join(dir, e.Name()))
		if info == nil {
			continue
		}
		if found != nil && !os.SameFile(found, info) {
			return nil, fault.New(fault.Internal, "find", "disk", "several files are open for writing")
		}
		found = info
	}
	if found == nil {
		return nil, fault.New(fault.NotFound, "find", "disk", "the vm has none")
	}
	return found, nil
}

// openForWriting is nil for what is no disk or cannot be written. The link's own mode tells how the
// descriptor was opened.
func openForWriting(path string) os.FileInfo {
	link, err := os.Lstat(path)
	if err != nil || link.Mode().Perm()&0o200 == 0 {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() && !isBlock(info) {
		return nil
	}
	// Memory that was made by the kernel for the VMM is not on a file system.
	if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/memfd:") {
		return nil
	}
	return info
}

// hostNode is a device's node in /dev, which other programs know it by; that in the jail is
// returned where there is none.
func hostNode(info os.FileInfo) os.FileInfo {
	rdev := info.Sys().(*syscall.Stat_t).Rdev
	f, err := os.Open(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", unix.Major(rdev), unix.Minor(rdev)))
	if err != nil {
		return info
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, found := strings.CutPrefix(lines.Text(), "DEVNAME=")
		if !found {
			continue
		}
		if node, err := os.Stat(filepath.Join("/dev", name)); err == nil && sameDisk(info, filepath.Join("/dev", name)) {
			return node
		}
	}
	return info
}

// GrowDisk implements vmm.VM: the VMM looks at its disk's size when it opens it.
func (vm *VM) GrowDisk(ctx context.Context, sizeBytes int64) error {
	if err := vm.usable("grow disk of"); err != nil {
		return err
	}
	if sizeBytes <= 0 || sizeBytes%512 != 0 {
		return vm.wrap(invalid("size_bytes", sizeBytes, "not a positive multiple of 512"), "grow disk of")
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	return vm.wrap(vm.growDisk(ctx, sizeBytes), "grow disk of")
}

func (vm *VM) growDisk(ctx context.Context, sizeBytes int64) error {
	disk := vm.jail.path(diskNode)
	size, err := sizeOf(disk)
	if err != nil {
		return err
	}
	if size < sizeBytes {
		return fault.New(fault.FailedPrecondition, "check", "disk", fmt.Sprintf("it has %d bytes, less than %d", size, sizeBytes))
	}
	vm.stale = true
	return vm.knowDisk(ctx)
}

// sizeOf a file or a block device.
func sizeOf(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fault.Wrap(err, "open", "disk")
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	return size, fault.Wrap(err, "measure", "disk")
}
