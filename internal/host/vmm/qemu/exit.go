package qemu

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/console"
)

// watch waits for the process's end and then says why it ended. It is the only one to remove
// a started VM's sockets.
func (vm *VM) watch() {
	select {
	case <-vm.detached:
		return
	case <-vm.proc.Done():
	}
	vm.drain()
	vm.exit = vm.reason(vm.proc.Status())
	if err := removeSockets(filepath.Dir(vm.handle.Socket)); err != nil {
		vm.log.Warn("sockets of a gone vm stay", "vm", vm.id(), "error", err)
	}
	vm.disconnect()
	close(vm.exited)
}

// drain lets the readers reach the end of what a dead process said last: the sockets are
// closed, so that is at once.
func (vm *VM) drain() {
	const most = 500 * time.Millisecond
	timeout := time.After(most)
	ends := []<-chan struct{}{vm.qmp.Done(), vm.console.Done()}
	if vm.said != nil {
		ends = append(ends, vm.said.done)
	}
	for _, end := range ends {
		select {
		case <-end:
		case <-timeout:
			return
		}
	}
}

// Exited implements vmm.VM.
func (vm *VM) Exited() <-chan struct{} { return vm.exited }

// Exit implements vmm.VM; it waits until the VM is gone or detached.
func (vm *VM) Exit() vmm.Exit {
	select {
	case <-vm.exited:
		return vm.exit
	case <-vm.detached:
		return vmm.Exit{Reason: "detached", Code: -1}
	}
}

func (vm *VM) reason(s process.Status) vmm.Exit {
	e := vmm.Exit{Code: -1, Requested: vm.killed.Load(), At: s.At, Reason: s.String()}
	if s.Known {
		e.Code = s.Code
	}
	if s.Known && s.Signal != 0 {
		return e
	}
	vm.mu.Lock()
	shutdown := vm.shutdown
	vm.mu.Unlock()
	if text := guestReason(shutdown, vm.console.Recent()); text != "" {
		e.Reason = text
		return e
	}
	if s.Known && s.Code == 0 {
		e.Reason = "guest shut down or rebooted"
	} else if said := vm.said.text(); said != "" {
		e.Reason = fmt.Sprintf("qemu: %s: %s", s, said)
	}
	return e
}

// guestReason says what the guest did, by QEMU's SHUTDOWN event and the console; "" when the
// guest did nothing.
func guestReason(shutdown string, printed []byte) string {
	switch shutdown {
	case "guest-panic", "guest-reset":
		if why, found := console.Panic(printed); found {
			return why
		}
		if shutdown == "guest-panic" {
			return "guest panicked"
		}
		return "guest rebooted"
	case "guest-shutdown":
		return "guest shut down"
	default:
		return ""
	}
}
