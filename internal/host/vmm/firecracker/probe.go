package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/undo"
)

const (
	// probeTime bounds a probe; a kernel under KVM prints within 100 ms.
	probeTime     = 10 * time.Second
	probeMemoryMB = 128
	probeUID      = 65534
	kvmDevice     = "/dev/kvm"
)

// probeMark is what every Linux prints first.
const probeMark = "Linux version"

// ProbeResult says whether Firecracker runs a kernel here.
type ProbeResult struct {
	Works  bool
	Reason string
	Hint   string
}

// Probe boots o's probe kernel by the jailer and waits until it prints. Opening /dev/kvm proves
// nothing: there are hosts where every ioctl answers, and no kernel runs.
func Probe(ctx context.Context, o Options) ProbeResult {
	if err := withoutKVM(); err != nil {
		return ProbeResult{Reason: err.Error(), Hint: fault.HintOf(err)}
	}
	d, err := New(ctx, o)
	if err != nil {
		return ProbeResult{Reason: err.Error(), Hint: fault.HintOf(err)}
	}
	return d.Probe(ctx)
}

// Probe boots the probe kernel.
func (d *Driver) Probe(ctx context.Context) ProbeResult {
	if d.o.ProbeKernel == "" {
		return ProbeResult{Reason: "firecracker not tried: no ELF kernel (vmlinux) to boot", Hint: "build a template: it has one"}
	}
	if err := withoutKVM(); err != nil {
		return ProbeResult{Reason: err.Error(), Hint: fault.HintOf(err)}
	}
	if err := d.probe(ctx); err != nil {
		return ProbeResult{Reason: "firecracker does not run a guest: " + err.Error(), Hint: fault.HintOf(err)}
	}
	return ProbeResult{Works: true, Reason: "firecracker " + d.identity.Version + " booted a guest under KVM"}
}

// withoutKVM says why KVM cannot work here, as far as that is seen without booting anything.
func withoutKVM() error {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err == nil {
		return f.Close()
	}
	e := &fault.Error{Kind: fault.FailedPrecondition, Op: "open", Object: kvmDevice, Err: err}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return e.WithHint("modprobe kvm_intel or kvm_amd; in a cloud, choose a machine with nested virtualization, or bare metal")
	case errors.Is(err, os.ErrPermission):
		return e.WithHint("run roost as root, with access to devices")
	default:
		return e.WithHint("enable virtualization in the firmware, or nested virtualization of this machine")
	}
}

func (d *Driver) probe(ctx context.Context) (err error) {
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Rollback(ctx)) }()
	dir, err := os.MkdirTemp(d.o.ProbeDir, "roost-fc-probe-")
	if err != nil {
		return fault.Wrap(err, "make", "probe directory")
	}
	steps.Push("directory", func(context.Context) error { return os.RemoveAll(dir) })
	uid := d.o.ProbeUID
	if uid == 0 {
		uid = probeUID
	}
	booted, err := d.Boot(ctx, vmm.Config{
		ID: "probe", Dir: dir, VCPUs: 1, MemoryMB: probeMemoryMB,
		Kernel: d.o.ProbeKernel, Cmdline: "earlyprintk=ttyS0", UID: uid, GID: uid,
	})
	if err != nil {
		return err
	}
	steps.Push("probe vm", booted.Kill)
	return booted.(*VM).awaitWords(ctx)
}

// awaitWords waits until the guest's kernel has printed.
func (vm *VM) awaitWords(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	select {
	case <-vm.words.spoke:
		return nil
	case <-vm.exited:
		return errors.New(vm.exit.Reason)
	case <-ctx.Done():
		return fmt.Errorf("the guest printed nothing in %s", probeTime)
	}
}
