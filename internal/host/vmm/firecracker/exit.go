package firecracker

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/console"
	"github.com/roosthq/roost/internal/undo"
)

// watch waits for the process's end and then says why it ended. It is the only one to remove
// what a started VM has on the host.
func (vm *VM) watch() {
	if !vm.awaitEnd() {
		return
	}
	vm.drain()
	vm.exit = vm.reason(vm.proc.Status())
	ctx, cancel := undo.Context(context.Background())
	defer cancel()
	if err := vm.d.clean(ctx, vm.dir(), vm.jail); err != nil {
		vm.log.Warn("what a gone vm had stays", "vm", vm.id(), "error", err)
	}
	vm.console.Close()
	close(vm.exited)
}

// awaitEnd is false when the VM was detached. A guest that has halted is ended.
func (vm *VM) awaitEnd() bool {
	off := vm.words.off
	for {
		select {
		case <-vm.detached:
			return false
		case <-vm.proc.Done():
			return true
		case <-off:
			off = nil
			ctx, cancel := undo.Context(context.Background())
			if err := vm.proc.Kill(ctx); err != nil && vm.usable("end") == nil {
				vm.log.Warn("a vm that has halted stays", "vm", vm.id(), "error", err)
			}
			cancel()
		}
	}
}

// drain lets the console's reader reach the end of what was printed last: its writer is gone, so
// that is at once.
func (vm *VM) drain() {
	const most = 500 * time.Millisecond
	select {
	case <-vm.console.Done():
	case <-time.After(most):
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
	said := vm.words.reason()
	switch {
	case e.Requested:
	case said == guestOff: // it was ended for that
		e.Code, e.Reason = 0, said
	case s.Known && s.Signal != 0:
		if vm.d.cgroups.oomKilled(vm.jail.id) {
			e.Reason = "out of memory: " + s.String() + " at its cgroup's limit"
		}
	case s.Known && s.Code > 1, s.Known && s.Code != 0 && said == "":
		e.Reason = failure(s, vm.console.Recent())
	case said != "":
		e.Reason = said
	case s.Known:
		e.Reason = "guest shut down or rebooted"
	}
	return e
}

// codes are those with which Firecracker says what stopped it.
var codes = map[int]string{
	148: "a system call that its seccomp filter refuses",
	149: "SIGBUS: its memory file is shorter than it was, or the host's disk failed",
	150: "SIGSEGV",
	151: "a file beyond its limit",
	152: "a configuration that it refuses",
	153: "arguments that it refuses",
	154: "SIGXCPU",
	155: "SIGPIPE",
	156: "SIGHUP",
	157: "SIGILL",
}

// logHead begins what Firecracker logs.
const logHead = `\d{4}-\d\d-\d\dT[0-9:.]+ \[[^\]\n]+\] `

// logLine is one of Firecracker's own among those of its guest.
var logLine = regexp.MustCompile(`(?m)^` + logHead + `(.*)$`)

func failure(s process.Status, printed []byte) string {
	why := "firecracker: " + s.String()
	if said := codes[s.Code]; said != "" {
		why += ", " + said
	}
	lines := logLine.FindAllSubmatch(printed, -1)
	for _, line := range slices.Backward(lines) {
		// That it exits is no reason.
		if text := bytes.TrimSpace(line[1]); !bytes.HasPrefix(text, []byte("Firecracker exiting")) {
			return fmt.Sprintf("%s: %s", why, console.Printable(text))
		}
	}
	return why
}
