package qemu

import (
	"context"
	"errors"

	"github.com/roosthq/roost/internal/fault"
)

// removeLeftovers takes away what a command that did not end left in QEMU, whichever agent gave
// it: the nodes above the top, and the descriptors that no node uses. It asks QEMU what there is,
// so it may be repeated, and what is in use it leaves alone. Of a paused VM QEMU closes the
// descriptors only when they are taken away once more while it runs.
func (vm *VM) removeLeftovers(ctx context.Context) error {
	top, err := vm.topIndex(ctx)
	if fault.Is(err, fault.NotFound) {
		top, err = -1, nil // no disk
	}
	if err != nil {
		return err
	}
	if err := vm.removeNodesAbove(ctx, top); err != nil {
		return err
	}
	return vm.removeUnused(ctx)
}

// removeNodesAbove: a switch adds one drive node, of which the format's part stands on the file's.
func (vm *VM) removeNodesAbove(ctx context.Context, top int) error {
	nodes, err := vm.qmp.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{formatNode(top + 1), fileNode(top + 1)} {
		if _, there := nodes[name]; !there {
			continue
		}
		if err := vm.qmp.RemoveNode(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// removeUnused takes away the descriptors of every set that no node has open.
func (vm *VM) removeUnused(ctx context.Context) error {
	nodes, err := vm.qmp.Nodes(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, file := range nodes {
		used[file] = true
	}
	fds, err := vm.qmp.FDs(ctx)
	if err != nil {
		return err
	}
	unused := map[int]bool{}
	for _, fd := range fds {
		unused[fd.Set] = !used[fd.Path()]
	}
	var errs []error
	for set := range unused {
		if unused[set] {
			errs = append(errs, vm.qmp.RemoveSet(ctx, set))
		}
	}
	return errors.Join(errs...)
}
