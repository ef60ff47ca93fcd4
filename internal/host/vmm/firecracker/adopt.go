package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
)

// Adopt implements vmm.Driver. Of a VM that is gone it removes what is left.
func (d *Driver) Adopt(ctx context.Context, h vmm.Handle) (vmm.VM, error) {
	if h.Driver != Name {
		return nil, fault.New(fault.Invalid, "adopt", "vm", "it belongs to driver "+h.Driver)
	}
	j := jailAt(h)
	if err := checkJail(h, j); err != nil {
		return nil, err
	}
	proc, err := open(h)
	if fault.Is(err, fault.NotFound) {
		if inUse(h.UID) { // the handle is wrong, and the VM may live
			return nil, err
		}
		return nil, errors.Join(err, d.clean(ctx, filepath.Dir(h.Console), j))
	}
	if err != nil {
		return nil, fault.Wrap(err, "adopt", "vm")
	}
	vm := d.newVM(proc, j, h)
	if err := vm.recognise(); err != nil {
		proc.Release()
		return nil, err
	}
	if err := vm.openConsole(); err != nil {
		proc.Release()
		return nil, vm.wrap(err, "adopt")
	}
	go vm.watch()
	if err := vm.takeUp(ctx); err != nil {
		vm.Detach()
		return nil, vm.wrap(err, "adopt")
	}
	return vm, nil
}

func open(h vmm.Handle) (*process.Process, error) {
	if h.BootID != process.BootID() {
		return nil, fault.New(fault.NotFound, "adopt", "vm", "the host was rebooted since")
	}
	if h.PID <= 0 || h.StartTime == 0 {
		return nil, fault.New(fault.NotFound, "adopt", "vm", "no process is named")
	}
	return process.Open(h.PID, h.StartTime)
}

// inUse tells whether anything runs under a uid. Where that cannot be told, it may.
func inUse(uid int) bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		info, err := os.Stat(filepath.Join("/proc", e.Name()))
		if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) == uid {
			return true
		}
	}
	return false
}

// checkJail: the handle's paths are where this driver puts them. They are removed when the VM is
// gone.
func checkJail(h vmm.Handle, j jail) error {
	below, err := filepath.Rel(j.base, h.Socket)
	part := strings.Split(below, string(filepath.Separator))
	if err != nil || !filepath.IsAbs(h.Console) || len(part) != 4 || part[0] == ".." || part[2] != "root" || part[3] != apiSocket ||
		!leafPattern.MatchString(j.id) {
		return fault.New(fault.NotFound, "adopt", "vm "+h.ID, "its socket is not where firecracker's is")
	}
	return nil
}

// recognise checks that the process is the one in the handle in more than its number: it is in the
// handle's jail, under the handle's uid, and of its size.
func (vm *VM) recognise() error {
	uid, err := vm.proc.UID()
	if err != nil || uid != vm.handle.UID || !strings.HasSuffix(vm.jail.id, "-"+strconv.Itoa(uid)) {
		return fault.New(fault.NotFound, "adopt", "vm "+vm.id(), "its process has another uid")
	}
	if err := vm.inJail(); err != nil {
		return &fault.Error{Kind: fault.NotFound, Op: "adopt", Object: "vm " + vm.id(), Err: err}
	}
	if _, err := vm.Mapping(); err != nil {
		return &fault.Error{Kind: fault.NotFound, Op: "adopt", Object: "vm " + vm.id(), Err: err}
	}
	return nil
}

// takeUp asks the VMM, and ends or takes back a switch of the disk that the other agent began.
func (vm *VM) takeUp(ctx context.Context) error {
	if _, err := vm.api.Instance(ctx); err != nil {
		return err
	}
	vm.change.Lock()
	defer vm.change.Unlock()
	vm.stale = true
	vm.logSettle(vm.settleDisk(ctx))
	return nil
}
