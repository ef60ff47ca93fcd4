package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
)

// SaveState implements vmm.VM.
func (vm *VM) SaveState(ctx context.Context, w *os.File) error {
	if err := vm.usable("save state of"); err != nil {
		return err
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	return vm.wrap(vm.saveState(ctx, w), "save state of")
}

func (vm *VM) saveState(ctx context.Context, w *os.File) error {
	if err := vm.paused(ctx); err != nil {
		return err
	}
	if err := vm.knowDisk(ctx); err != nil {
		return err
	}
	if err := vm.snapshot(ctx); err != nil {
		return err
	}
	saved, err := vm.openOut(stateFile)
	if err != nil {
		return err
	}
	defer saved.Close()
	info, err := saved.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 || info.Size() > maxState {
		return fault.New(fault.Internal, "read", "device state", fmt.Sprintf("%d bytes", info.Size()))
	}
	_, err = io.Copy(w, io.NewSectionReader(saved, 0, info.Size()))
	return fault.Wrap(err, "write", "device state")
}

// unsynced is what Firecracker says when it has written all pages, and forgotten which they were,
// and then the host's disk failed.
const unsynced = "on the memory backing file"

// snapshot writes state and pages. A save that failed is made good by the next: by one of all memory
// where the VMM may have forgotten what it had to write. So it may when nobody has heard how it ended:
// the agent died or gave up meanwhile. The mark is there from before the call until it is known.
func (vm *VM) snapshot(ctx context.Context) error {
	create := api.SnapshotCreate{Type: api.SnapshotDiff, State: inJail(stateFile), Memory: inJail(dirtyFile)}
	mark := filepath.Join(vm.jail.base, fullMark)
	_, err := os.Lstat(mark)
	full := err == nil
	if full {
		create.Type = api.SnapshotFull
	} else if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fault.Wrap(err, "mark", "save")
	}
	err = vm.api.CreateSnapshot(ctx, create)
	if err == nil || !full && remembers(err) {
		return errors.Join(err, fault.Wrap(os.Remove(mark), "mark", "save"))
	}
	return err
}

// remembers tells whether a save failed by an answer that leaves the pages to the next one.
func remembers(err error) bool {
	refused := fault.Is(err, fault.FailedPrecondition) || fault.Is(err, fault.ResourceExhausted)
	return refused && !strings.Contains(err.Error(), unsynced)
}

// openOut opens a file that the VMM writes.
func (vm *VM) openOut(name string) (*os.File, error) {
	f, err := os.OpenFile(vm.jail.path(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.Wrap(err, "open", name)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(err, "open", name), f.Close())
	}
	return f, nil
}

// Dirty implements vmm.VM.
func (vm *VM) Dirty(context.Context) (*os.File, error) {
	if err := vm.usable("read what was written by"); err != nil {
		return nil, err
	}
	f, err := vm.openOut(dirtyFile)
	if err != nil {
		return nil, vm.wrap(err, "read what was written by")
	}
	info, err := f.Stat()
	if want := int64(vm.handle.MemoryMB) << 20; err == nil && info.Size() != want {
		err = fmt.Errorf("%d bytes, not %d", info.Size(), want)
	}
	if err != nil {
		return nil, errors.Join(vm.wrap(err, "read what was written by"), f.Close())
	}
	return f, nil
}
