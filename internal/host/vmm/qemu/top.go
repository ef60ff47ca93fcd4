package qemu

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// WritesTo implements vmm.VM.
func (vm *VM) WritesTo(ctx context.Context) (os.FileInfo, error) {
	if err := vm.usable("find disk of"); err != nil {
		return nil, err
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	info, err := vm.writesTo(ctx)
	return info, vm.wrap(err, "find disk of")
}

// writesTo asks QEMU which node is the top, and the kernel what the descriptor is by which it is
// written. That a file is open for writing says nothing: a switch that was not made may have
// opened its.
func (vm *VM) writesTo(ctx context.Context) (os.FileInfo, error) {
	index, err := vm.topIndex(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := vm.qmp.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	fds, err := vm.qmp.FDs(ctx)
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		if fd.Label == writeLabel(index) && fd.Path() == nodes[fileNode(index)] {
			return vm.openForWriting(fd.FD.FD)
		}
	}
	return nil, fault.New(fault.FailedPrecondition, "find", "top node", "nothing was given to write it by")
}

// openForWriting looks at a descriptor inside QEMU.
func (vm *VM) openForWriting(fd int) (os.FileInfo, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", vm.handle.PID, fd)
	// The link's own mode tells how the descriptor was opened.
	link, err := os.Lstat(path)
	if err != nil {
		return nil, fault.Wrap(err, "look at", "top node")
	}
	if link.Mode().Perm()&0o200 == 0 {
		return nil, fault.New(fault.FailedPrecondition, "find", "top node", "it is not open for writing")
	}
	info, err := os.Stat(path)
	return info, fault.Wrap(err, "look at", "top node")
}

// isFile tells whether path is the file that info is of.
func isFile(info os.FileInfo, path string) bool {
	at, err := os.Stat(path)
	return err == nil && os.SameFile(info, at)
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
