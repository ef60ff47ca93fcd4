package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/console"
	"github.com/roosthq/roost/internal/undo"
)

// maxOpenFiles is plenty for a Firecracker with one disk and one interface.
const maxOpenFiles = 256

// launch starts a Firecracker that has configured nothing yet. fill puts what the start needs into
// its jail.
func (d *Driver) launch(ctx context.Context, cfg vmm.Config, fill func(jail) error) (_ *VM, err error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(err, "start", "vm "+cfg.ID)
	}
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, steps.Rollback(ctx))
		}
	}()
	if err := d.unchanged(); err != nil {
		return nil, err
	}
	j := d.jailOf(cfg)
	steps.Push("jail", func(ctx context.Context) error { return d.clean(ctx, cfg.Dir, j) })
	if err := errors.Join(removeFIFO(cfg.Dir), d.makeJail(j, cfg, fill)); err != nil {
		return nil, fault.Wrap(err, "start", "vm "+cfg.ID)
	}
	proc, err := d.spawn(cfg, j)
	if err != nil {
		return nil, fault.Wrap(err, "start", "vm "+cfg.ID)
	}
	steps.Push("process", proc.Kill)
	vm := d.newVM(proc, j, handleOf(cfg, j, proc))
	if err := vm.openConsole(); err != nil {
		return nil, fault.Wrap(err, "start", "vm "+cfg.ID)
	}
	steps.Push("console", func(context.Context) error { vm.console.Close(); return nil })
	if err := vm.open(ctx); err != nil {
		return nil, vm.explain(err)
	}
	go vm.watch()
	return vm, nil
}

// makeJail fills the jail before the jailer enters it.
func (d *Driver) makeJail(j jail, cfg vmm.Config, fill func(jail) error) error {
	if err := j.make(); err != nil {
		return err
	}
	if err := j.putOut(int64(cfg.MemoryMB) << 20); err != nil {
		return err
	}
	for _, n := range cfg.Drive {
		if err := j.putDrive(n, diskNode); err != nil {
			return err
		}
	}
	if d.o.SeccompFilter != "" {
		if err := j.put(d.o.SeccompFilter, filterFile); err != nil {
			return err
		}
	}
	return fill(j)
}

// clean removes all that a start makes but its console files.
func (d *Driver) clean(ctx context.Context, dir string, j jail) error {
	return errors.Join(j.remove(), removeFIFO(dir), d.cgroups.remove(ctx, j.id))
}

var _ vmm.Cleaner = (*Driver)(nil)

// Clean implements vmm.Cleaner.
func (d *Driver) Clean(ctx context.Context, dir string) error {
	base := filepath.Join(dir, jailDir)
	execs, err := os.ReadDir(base)
	if errors.Is(err, os.ErrNotExist) {
		return removeFIFO(dir)
	}
	errs := []error{fault.Wrap(err, "look at", "jail")}
	for _, exec := range execs {
		ids, err := os.ReadDir(filepath.Join(base, exec.Name()))
		errs = append(errs, fault.Wrap(err, "look at", "jail"))
		for _, id := range ids {
			if leafPattern.MatchString(id.Name()) {
				j := jail{base: base, root: filepath.Join(base, exec.Name(), id.Name(), "root"), id: id.Name()}
				errs = append(errs, d.clean(ctx, dir, j))
			}
		}
	}
	return errors.Join(append(errs, jail{base: base}.remove(), removeFIFO(dir))...)
}

// spawn starts the jailer, which becomes Firecracker: the process stays the same.
func (d *Driver) spawn(cfg vmm.Config, j jail) (*process.Process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, err := makeFIFO(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	return process.Start(process.Spec{
		Path: d.o.Jailer, Args: d.args(cfg, j), Files: []*os.File{null, out, out}, MaxFiles: maxOpenFiles,
	})
}

func (d *Driver) args(cfg vmm.Config, j jail) []string {
	args := []string{
		"--id", j.id, "--exec-file", d.o.Binary, "--chroot-base-dir", j.base,
		"--uid", strconv.Itoa(cfg.UID), "--gid", strconv.Itoa(cfg.GID),
		"--resource-limit", fmt.Sprintf("no-file=%d", maxOpenFiles),
		"--resource-limit", fmt.Sprintf("fsize=%d", largestFile(cfg)),
	}
	if cfg.NetNS != "" {
		args = append(args, "--netns", cfg.NetNS)
	}
	args = append(args, d.cgroups.args(cfg.VCPUs, cfg.MemoryMB)...)
	args = append(args, "--", "--api-sock", inJail(apiSocket), "--level", "Error")
	if d.o.SeccompFilter != "" {
		args = append(args, "--seccomp-filter", inJail(filterFile))
	}
	return append(args, d.o.Flags...)
}

// largestFile that the VM may write: its memory and its state. A disk that is a file may grow.
func largestFile(cfg vmm.Config) int64 {
	const largestDisk = 1 << 46
	for _, n := range cfg.Drive {
		if info, err := os.Stat(n.Path); err == nil && info.Mode().IsRegular() {
			return largestDisk
		}
	}
	return max(int64(cfg.MemoryMB)<<20, maxState)
}

func handleOf(cfg vmm.Config, j jail, proc *process.Process) vmm.Handle {
	return vmm.Handle{
		Driver: Name, ID: cfg.ID, PID: proc.PID, StartTime: proc.StartTime, BootID: process.BootID(),
		Socket:  j.path(apiSocket),
		Console: filepath.Join(cfg.Dir, console.File),
		UID:     cfg.UID, MemoryMB: cfg.MemoryMB,
	}
}

// open takes up the API of a VMM that is about to listen.
func (vm *VM) open(ctx context.Context) error {
	if err := vm.awaitAPI(ctx); err != nil {
		return err
	}
	if err := vm.jail.close(); err != nil {
		return err
	}
	version, err := vm.api.Version(ctx)
	if err != nil {
		return err
	}
	if want := vm.d.identity.Version; version != want {
		return fault.New(fault.Internal, "start", "firecracker", fmt.Sprintf("version %q runs, not %q", version, want))
	}
	return nil
}

// explain adds to a failed start what Firecracker or its jailer said.
func (vm *VM) explain(err error) error {
	select {
	case <-vm.proc.Done():
		<-vm.console.Done()
		said := console.Printable(lastLine(vm.console.Recent()))
		err = fault.New(fault.KindOf(err), "start", "vm "+vm.id(), fmt.Sprintf("%v (%s: %s)", err, vm.proc.Status(), said))
	default:
	}
	return fault.Wrap(err, "start", "vm "+vm.id())
}
