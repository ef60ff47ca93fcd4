package firecracker

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/console"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
)

// VM implements vmm.VM.
type VM struct {
	d       *Driver
	log     *slog.Logger
	handle  vmm.Handle
	proc    *process.Process
	jail    jail
	api     *api.Client
	console *console.Console
	words   *words

	// change serialises what is more than one call.
	change sync.Mutex
	// stale: the VMM may know its disk by another name than it will have in a restore.
	stale bool

	killed   atomic.Bool
	detached chan struct{}
	detach   sync.Once

	exited chan struct{}
	exit   vmm.Exit
}

var _ vmm.VM = (*VM)(nil)

func (d *Driver) newVM(proc *process.Process, j jail, h vmm.Handle) *VM {
	return &VM{
		d: d, log: d.log, handle: h, proc: proc, jail: j, api: api.New(j.dial), words: newWords(),
		detached: make(chan struct{}), exited: make(chan struct{}),
	}
}

func (vm *VM) id() string { return vm.handle.ID }

func (vm *VM) dir() string { return filepath.Dir(vm.handle.Console) }

// openConsole takes up the console, with what waits there since an earlier agent died.
func (vm *VM) openConsole() error {
	end, err := openFIFO(vm.dir())
	if err != nil {
		return err
	}
	if vm.console, err = console.Open(vm.dir(), end, vm.words.hear); err != nil {
		_ = end.Close()
	}
	return err
}

// Handle implements vmm.VM.
func (vm *VM) Handle() vmm.Handle { return vm.handle }

// Pause implements vmm.VM.
func (vm *VM) Pause(ctx context.Context) error {
	if err := vm.usable("pause"); err != nil {
		return err
	}
	return vm.wrap(vm.api.Pause(ctx), "pause")
}

// Resume implements vmm.VM.
func (vm *VM) Resume(ctx context.Context) error {
	if err := vm.usable("resume"); err != nil {
		return err
	}
	return vm.wrap(vm.api.Resume(ctx), "resume")
}

// usable refuses what a gone or detached VM cannot do.
func (vm *VM) usable(op string) error {
	select {
	case <-vm.detached:
		return fault.New(fault.FailedPrecondition, op, "vm "+vm.id(), "it was detached")
	case <-vm.proc.Done():
		return fault.New(fault.FailedPrecondition, op, "vm "+vm.id(), "it is gone")
	default:
		return nil
	}
}

func (vm *VM) wrap(err error, op string) error { return fault.Wrap(err, op, "vm "+vm.id()) }

// paused refuses a VM that runs.
func (vm *VM) paused(ctx context.Context) error {
	in, err := vm.api.Instance(ctx)
	if err != nil {
		return err
	}
	if in.State != api.Paused {
		return fault.New(fault.FailedPrecondition, "check", "state", "it is "+console.Printable([]byte(in.State))+", not paused")
	}
	return nil
}

// Kill implements vmm.VM.
func (vm *VM) Kill(ctx context.Context) error {
	select {
	case <-vm.exited:
		return nil
	case <-vm.detached:
		return vm.usable("kill")
	default:
	}
	vm.killed.Store(true)
	if err := vm.proc.Kill(ctx); err != nil {
		return vm.wrap(err, "kill")
	}
	select {
	case <-vm.exited:
		return nil
	case <-vm.detached:
		return vm.usable("kill")
	case <-ctx.Done():
		return vm.wrap(ctx.Err(), "kill")
	}
}

// Stopped implements vmm.VM.
func (vm *VM) Stopped() string { return vm.proc.Stopped() }

// Detach implements vmm.VM.
func (vm *VM) Detach() {
	vm.detach.Do(func() {
		close(vm.detached)
		vm.proc.Release()
		vm.console.Close()
	})
}

// Console implements vmm.VM.
func (vm *VM) Console() ([]byte, error) { return console.Read(vm.dir()) }
