package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/console"
	"github.com/roosthq/roost/internal/host/vmm/qemu/qmp"
	"github.com/roosthq/roost/internal/undo"
)

// maxOpenFiles is plenty for a QEMU: its drive nodes and two dozen of its own.
const maxOpenFiles = 1024

// environment: QEMU's own memory is small and shared between few threads; one arena less is
// private memory less for every VM.
var environment = []string{"PATH=/usr/bin:/bin", "LANG=C", "MALLOC_ARENA_MAX=1"}

// launch starts QEMU and connects to it. state nil is a boot.
func (d *Driver) launch(ctx context.Context, cfg vmm.Config, state *os.File) (_ *VM, err error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(err, "start", "vm "+cfg.ID)
	}
	var steps undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, steps.Rollback(ctx))
		}
	}()
	if err := removeSockets(cfg.Dir); err != nil { // of a VM that died with its agent
		return nil, fault.Wrap(err, "remove", "stale sockets")
	}
	steps.Push("sockets", func(context.Context) error { return removeSockets(cfg.Dir) })
	said, proc, s, err := d.spawn(cfg, state)
	if err != nil {
		return nil, fault.Wrap(err, "start", "vm "+cfg.ID)
	}
	steps.Push("process", proc.Kill)
	steps.Push("output", func(context.Context) error { said.close(); return nil })
	vm := newVM(d.log, proc, said, handleOf(cfg, proc, s.memory))
	vm.stateFD = s.state
	if err := vm.connect(ctx); err != nil {
		return nil, vm.explain(err)
	}
	go vm.watch()
	return vm, nil
}

// spawn opens what QEMU inherits, starts it and closes the agent's copies.
func (d *Driver) spawn(cfg vmm.Config, state *os.File) (said *complaints, proc *process.Process, s *start, err error) {
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			_ = f.Close()
		}
	}()
	if err := d.unchanged(); err != nil {
		return nil, nil, nil, err
	}
	said, out, err := openComplaints()
	if err != nil {
		return nil, nil, nil, fault.Wrap(err, "make", "pipe")
	}
	opened = append(opened, out) // closing it also ends the collector when nothing was started
	s, more, err := openStart(cfg, state, out)
	opened = append(opened, more...)
	if err != nil {
		return nil, nil, nil, err
	}
	proc, err = process.Start(process.Spec{
		Path: d.binary, Args: d.args(s), Env: environment, Files: s.in.files,
		UID: cfg.UID, GID: cfg.GID, Groups: d.accel.groups, MaxFiles: maxOpenFiles,
	})
	return said, proc, s, err
}

// openStart opens everything that QEMU inherits. opened is what the agent must close, also
// when it fails; memory, tap and state stay their owners'.
func openStart(cfg vmm.Config, state, out *os.File) (s *start, opened []*os.File, err error) {
	s = &start{cfg: cfg}
	open := func(f *os.File, err error) (int, error) {
		if err != nil {
			return 0, err
		}
		opened = append(opened, f)
		return s.in.add(f), nil
	}
	if _, err = open(os.Open(os.DevNull)); err != nil {
		return s, opened, err
	}
	s.in.add(out)
	s.in.add(out)
	s.memory = s.in.add(cfg.Memory.File)
	if s.qmp, err = open(listen(filepath.Join(cfg.Dir, qmpSocket))); err != nil {
		return s, opened, err
	}
	if s.console, err = open(listen(filepath.Join(cfg.Dir, consoleSocket))); err != nil {
		return s, opened, err
	}
	if cfg.Tap != nil {
		s.tap = s.in.add(cfg.Tap)
	}
	if err = openGuest(s, state, open); err != nil {
		return s, opened, err
	}
	for i, n := range cfg.Drive {
		node, err := openDriveNode(i, n)
		if err != nil {
			return s, opened, err
		}
		s.nodes = append(s.nodes, node)
		for _, fd := range node.fds {
			opened = append(opened, fd.file)
		}
	}
	return s, opened, nil
}

// openGuest opens what the guest starts from: its saved state, or kernel and initrd.
func openGuest(s *start, state *os.File, open func(*os.File, error) (int, error)) (err error) {
	if state != nil {
		s.state = s.in.add(state)
		return nil
	}
	if s.kernel, err = open(copyOf(s.cfg.Kernel)); err != nil {
		return fault.Wrap(err, "open", "kernel")
	}
	if s.cfg.Initrd != "" {
		if s.initrd, err = open(copyOf(s.cfg.Initrd)); err != nil {
			return fault.Wrap(err, "open", "initrd")
		}
	}
	return nil
}

// copyOf is a file's content in a memfd. QEMU opens it once more through its descriptor, under
// the VM's uid: that works for a memfd whatever the mode of the file, which may hold secrets.
func copyOf(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dst, err := memfd("roost-boot")
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(dst, src); err != nil {
		return nil, errors.Join(err, dst.Close())
	}
	return dst, nil
}

func handleOf(cfg vmm.Config, proc *process.Process, memory int) vmm.Handle {
	h := vmm.Handle{
		Driver: Name, ID: cfg.ID, PID: proc.PID, StartTime: proc.StartTime, BootID: process.BootID(),
		Socket:  filepath.Join(cfg.Dir, qmpSocket),
		Console: filepath.Join(cfg.Dir, console.File),
		UID:     cfg.UID, MemoryMB: cfg.MemoryMB, MemoryFD: memory,
	}
	if info, err := cfg.Memory.File.Stat(); err == nil {
		st := info.Sys().(*syscall.Stat_t)
		h.MemoryDev, h.MemoryIno = st.Dev, st.Ino
	}
	return h
}

// connect takes up QMP and the console.
func (vm *VM) connect(ctx context.Context) error {
	dir := filepath.Dir(vm.handle.Socket)
	text, err := dial(filepath.Join(dir, consoleSocket))
	if err != nil {
		return err
	}
	if vm.console, err = console.Open(dir, text, nil); err != nil {
		return errors.Join(err, text.Close())
	}
	conn, err := dial(vm.handle.Socket)
	if err == nil {
		vm.qmp, err = qmp.Open(ctx, conn, vm.event)
	}
	if err != nil {
		vm.console.Close()
		return err
	}
	return nil
}

// explain adds to a failed start what QEMU itself said of it: the connection alone only broke.
func (vm *VM) explain(err error) error {
	const grace = time.Second
	if vm.said != nil && fault.Is(err, fault.Unavailable) {
		select {
		case <-vm.proc.Done():
			<-vm.said.done
			return fault.New(fault.Internal, "start", "vm "+vm.id(),
				fmt.Sprintf("qemu: %s: %s", vm.proc.Status(), vm.said.text()))
		case <-time.After(grace):
		}
	}
	return fault.Wrap(err, "start", "vm "+vm.id())
}
