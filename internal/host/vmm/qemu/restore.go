package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/undo"
)

// maxState bounds device state; a VM with disk and network has some 20 KB.
const maxState = 16 << 20

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, state *os.File, prepare func(vmm.Mapping) error) (vmm.VM, error) {
	took := newPhases()
	if err := d.validate(cfg, false); err != nil {
		return nil, err
	}
	own, err := copyState(state)
	if err != nil {
		return nil, err
	}
	defer own.Close()
	took.done("check")
	vm, err := d.launch(ctx, cfg, own)
	if err != nil {
		return nil, err
	}
	took.done("start")
	if err := vm.restore(ctx, prepare, took); err != nil {
		return nil, vm.abandon(ctx, vm.explain(err))
	}
	d.log.Debug("vm restored", append([]any{"vm", cfg.ID, "pid", vm.handle.PID}, took.attrs...)...)
	return vm, nil
}

func (vm *VM) restore(ctx context.Context, prepare func(vmm.Mapping) error, took *phases) error {
	m, err := vm.Mapping()
	if err != nil {
		return err
	}
	if prepare != nil {
		if err := prepare(m); err != nil {
			return fault.Wrap(err, "prepare", "memory")
		}
	}
	took.done("prepare")
	if err := vm.qmp.EnableMigrationEvents(ctx); err != nil {
		return err
	}
	if err := vm.qmp.LoadDeviceState(ctx, vm.stateFD); err != nil {
		return err
	}
	if err := vm.loaded(ctx); err != nil {
		return err
	}
	took.done("load")
	return vm.expect(ctx, "paused")
}

// loaded waits for the MIGRATION event. QEMU exits when a state does not fit it.
func (vm *VM) loaded(ctx context.Context) error {
	const most = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	select {
	case status := <-vm.load:
		if status != "completed" {
			return fault.New(fault.Internal, "load", "device state", status)
		}
		return nil
	case <-vm.proc.Done():
		return fault.New(fault.Unavailable, "load", "device state", "qemu ended")
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "load", "device state")
	}
}

// abandon kills a VM whose start failed.
func (vm *VM) abandon(ctx context.Context, cause error) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	return errors.Join(cause, vm.Kill(ctx))
}

// copyState gives QEMU a descriptor of its own: the caller's has an offset that concurrent
// restores would share, and names a file that QEMU must not reach.
func copyState(state *os.File) (*os.File, error) {
	if state == nil {
		return nil, fault.New(fault.Invalid, "load", "device state", "no file given")
	}
	info, err := state.Stat()
	if err != nil {
		return nil, fault.Wrap(err, "load", "device state")
	}
	if info.Size() == 0 || info.Size() > maxState {
		return nil, fault.New(fault.Invalid, "load", "device state "+state.Name(),
			fmt.Sprintf("%d bytes are not within 1 and %d", info.Size(), maxState))
	}
	own, err := memfd("vm-state")
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(own, io.NewSectionReader(state, 0, info.Size())); err == nil {
		_, err = own.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(err, "load", "device state"), own.Close())
	}
	return own, nil
}

func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fault.Wrap(err, "make", "memfd "+name)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// phases are the times of a start, for the log.
type phases struct {
	last  time.Time
	attrs []any
}

func newPhases() *phases { return &phases{last: time.Now()} }

func (p *phases) done(name string) {
	now := time.Now()
	p.attrs = append(p.attrs, name+"_ms", float64(now.Sub(p.last).Microseconds())/1000)
	p.last = now
}
