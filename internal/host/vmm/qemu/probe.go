package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/undo"
)

const (
	// probeTime bounds a probe; a kernel under KVM prints within 100 ms.
	probeTime     = 5 * time.Second
	probeMemoryMB = 128
	probeUID      = 65534
)

// probeMark is what every Linux prints first.
var probeMark = []byte("Linux version")

// ProbeResult says whether KVM runs a stock kernel here.
type ProbeResult struct {
	Works  bool
	Reason string
}

var (
	probeMu sync.Mutex
	probed  *ProbeResult
)

// probeOnce probes once per process. A probe that was cut short by its caller is no answer and
// is not kept.
func probeOnce(ctx context.Context, binary string, o Options) ProbeResult {
	probeMu.Lock()
	defer probeMu.Unlock()
	if probed != nil {
		return *probed
	}
	r := Probe(ctx, binary, o)
	if ctx.Err() == nil && o.ProbeKernel != "" {
		probed = &r
	}
	return r
}

// Probe boots o's probe kernel under KVM and waits until it prints. Opening /dev/kvm proves
// nothing: there are hosts where every ioctl answers and firmware runs, and no kernel does.
func Probe(ctx context.Context, binary string, o Options) ProbeResult {
	if why := WithoutKVM(); why != "" {
		return ProbeResult{Reason: why}
	}
	if o.ProbeKernel == "" {
		return ProbeResult{Reason: "KVM not tried: no kernel to boot"}
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if err := runProbe(ctx, binary, kvmAccelerator("probe"), o); err != nil {
		return ProbeResult{Reason: "KVM does not run a guest: " + err.Error()}
	}
	return ProbeResult{Works: true, Reason: "a guest booted under KVM"}
}

// WithoutKVM says why KVM cannot work here, as far as that is seen without booting anything; ""
// is only that it may.
func WithoutKVM() (why string) {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return "no KVM: " + err.Error()
	}
	_ = f.Close()
	if !kvmAllowed() {
		return "KVM not usable: " + kvmDevice + " is root's alone, and a VM runs as another user" +
			" (chgrp kvm " + kvmDevice + " && chmod 660 " + kvmDevice + ")"
	}
	return ""
}

func runProbe(ctx context.Context, binary string, accel accelerator, o Options) (err error) {
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Rollback(ctx)) }()
	cfg, err := probeConfig(o, &steps)
	if err != nil {
		return err
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Driver{binary: binary, accel: accel, log: log}
	booted, err := d.Boot(ctx, cfg)
	if err != nil {
		return err
	}
	steps.Push("probe vm", booted.Kill)
	return booted.(*VM).awaitConsole(ctx, probeMark)
}

func probeConfig(o Options, steps *undo.Stack) (vmm.Config, error) {
	dir, err := os.MkdirTemp("", "roost-kvm-probe-")
	if err != nil {
		return vmm.Config{}, fault.Wrap(err, "make", "probe directory")
	}
	steps.Push("directory", func(context.Context) error { return os.RemoveAll(dir) })
	mem, err := memfd("probe")
	if err != nil {
		return vmm.Config{}, err
	}
	steps.Push("memory", func(context.Context) error { return mem.Close() })
	if err := unix.Ftruncate(int(mem.Fd()), probeMemoryMB<<20); err != nil {
		return vmm.Config{}, fault.Wrap(err, "size", "probe memory")
	}
	uid := o.ProbeUID
	if uid == 0 {
		uid = probeUID
	}
	return vmm.Config{
		ID: "kvm-probe", Dir: dir, VCPUs: 1, MemoryMB: probeMemoryMB,
		Kernel: o.ProbeKernel, Initrd: o.ProbeInitrd, Cmdline: "earlyprintk=ttyS0",
		Memory: vmm.Memory{File: mem, Shared: true}, UID: uid, GID: uid,
	}, nil
}

// awaitConsole waits until the guest has printed mark.
func (vm *VM) awaitConsole(ctx context.Context, mark []byte) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if bytes.Contains(vm.console.Recent(), mark) {
			return nil
		}
		select {
		case <-vm.exited:
			return errors.New(vm.exit.Reason)
		case <-ctx.Done():
			return fmt.Errorf("the guest printed nothing in %s", probeTime)
		case <-tick.C:
			// A CPU that KVM cannot run leaves QEMU alive, in state internal-error.
			if err := vm.expect(ctx, "running"); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%w (%s)", err, vm.said.text())
			}
		}
	}
}
