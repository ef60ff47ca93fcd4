package qemu

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/console"
	"github.com/roosthq/roost/internal/host/vmm/qemu/qmp"
)

// VM implements vmm.VM.
type VM struct {
	log     *slog.Logger
	handle  vmm.Handle
	proc    *process.Process
	said    *complaints // nil for an adopted VM
	qmp     *qmp.Client
	console *console.Console

	stateFD int // what a restore loads from, inside QEMU

	// change serialises what is more than one command.
	change sync.Mutex

	// writersLeft: a disk node may be sealed and QEMU still hold it open for writing.
	writersLeft atomic.Bool

	killed   atomic.Bool
	detached chan struct{}
	detach   sync.Once

	exited chan struct{}
	exit   vmm.Exit

	mu       sync.Mutex
	shutdown string // reason of QEMU's SHUTDOWN event
	load     chan string
}

var _ vmm.VM = (*VM)(nil)

func newVM(log *slog.Logger, proc *process.Process, said *complaints, h vmm.Handle) *VM {
	return &VM{
		log: log, handle: h, proc: proc, said: said,
		detached: make(chan struct{}), exited: make(chan struct{}),
		load: make(chan string, 1),
	}
}

func (vm *VM) id() string { return vm.handle.ID }

// event runs on QMP's reader.
func (vm *VM) event(e qmp.Event) {
	switch e.Name {
	case "SHUTDOWN":
		var data struct {
			Reason string `json:"reason"`
		}
		if json.Unmarshal(e.Data, &data) == nil {
			vm.mu.Lock()
			vm.shutdown = data.Reason
			vm.mu.Unlock()
		}
	case "MIGRATION":
		var data struct {
			Status string `json:"status"`
		}
		if json.Unmarshal(e.Data, &data) == nil && (data.Status == "completed" || data.Status == "failed") {
			select {
			case vm.load <- data.Status:
			default: // said twice
			}
		}
	}
}

// Handle implements vmm.VM.
func (vm *VM) Handle() vmm.Handle { return vm.handle }

// Pause implements vmm.VM.
func (vm *VM) Pause(ctx context.Context) error {
	if err := vm.usable("pause"); err != nil {
		return err
	}
	return vm.wrap(vm.qmp.Stop(ctx), "pause")
}

// Resume implements vmm.VM.
func (vm *VM) Resume(ctx context.Context) error {
	if err := vm.usable("resume"); err != nil {
		return err
	}
	if err := vm.qmp.Continue(ctx); err != nil {
		return vm.wrap(err, "resume")
	}
	if vm.writersLeft.Load() {
		vm.change.Lock()
		defer vm.change.Unlock()
		vm.forgetWriters(ctx)
	}
	return nil
}

// usable refuses what a gone or detached VM cannot do.
func (vm *VM) usable(op string) error {
	select {
	case <-vm.detached:
		return fault.New(fault.FailedPrecondition, op, "vm "+vm.id(), "it was detached")
	case <-vm.exited:
		return fault.New(fault.FailedPrecondition, op, "vm "+vm.id(), "it is gone: "+vm.exit.Reason)
	default:
		return nil
	}
}

func (vm *VM) wrap(err error, op string) error { return fault.Wrap(err, op, "vm "+vm.id()) }

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
		vm.disconnect()
	})
}

// disconnect closes what the agent holds of the VM and waits for its readers.
func (vm *VM) disconnect() {
	vm.qmp.Close()
	vm.console.Close()
	vm.said.close()
}

// Console implements vmm.VM.
func (vm *VM) Console() ([]byte, error) { return console.Read(filepath.Dir(vm.handle.Console)) }

// ReadConsole implements vmm.Driver.
func (d *Driver) ReadConsole(dir string) ([]byte, error) { return console.Read(dir) }
