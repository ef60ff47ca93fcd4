package qemu

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"regexp"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/qemu/tsc"
)

// Name is the driver's name in handles.
const Name = "qemu"

const binaryName = "qemu-system-x86_64"

// Accelerators for Options.Accel.
const (
	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// Options configure a Driver.
type Options struct {
	// Binary is QEMU's path; "" looks for qemu-system-x86_64 in PATH.
	Binary string
	// Accel is AccelAuto (or ""), AccelKVM or AccelTCG. Auto probes KVM, once per process.
	Accel string
	// ProbeKernel and ProbeInitrd are what the probe boots; without a kernel auto means TCG.
	ProbeKernel, ProbeInitrd string
	// ProbeUID is the uid and gid that the probe runs under; 0 means 65534.
	ProbeUID int
	// Logger gets phases of starts at debug level; nil discards.
	Logger *slog.Logger
}

// Driver implements vmm.Driver.
type Driver struct {
	binary string
	// installed is the binary that identity is of.
	installed os.FileInfo
	accel     accelerator
	identity  vmm.Identity
	log       *slog.Logger
}

var _ vmm.Driver = (*Driver)(nil)

// New finds QEMU, decides on the accelerator and computes the identity.
func New(ctx context.Context, o Options) (*Driver, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	binary, err := find(o.Binary)
	if err != nil {
		return nil, err
	}
	installed, err := os.Stat(binary)
	if err != nil {
		return nil, fault.Wrap(err, "look at", binary)
	}
	build, err := hashOf(binary)
	if err != nil {
		return nil, err
	}
	version, err := versionOf(ctx, binary)
	if err != nil {
		return nil, err
	}
	accel, err := chooseAccel(ctx, binary, o)
	if err != nil {
		return nil, err
	}
	d := &Driver{binary: binary, installed: installed, accel: accel, log: o.Logger}
	d.identity = vmm.Identity{
		Build: build, Version: version, Machine: machine, CPU: accel.identity, Cmdline: accel.cmdline,
	}
	return d, nil
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return Name }

// Capabilities implements vmm.Driver.
func (d *Driver) Capabilities() vmm.Capabilities {
	return vmm.Capabilities{Accelerated: d.accel.name == AccelKVM, LiveDiskSwitch: true}
}

// Identity implements vmm.Driver.
func (d *Driver) Identity() vmm.Identity { return d.identity }

// AccelReason says why the accelerator is the one it is, for doctor.
func (d *Driver) AccelReason() string { return d.accel.reason }

// Installed says whether there is a QEMU.
func Installed() error {
	_, err := find("")
	return err
}

func find(binary string) (string, error) {
	if binary == "" {
		binary = binaryName
	}
	path, err := exec.LookPath(binary)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "", fault.New(fault.FailedPrecondition, "find", binary, "not installed").
			WithHint("apt-get install qemu-system-x86")
	}
	if err != nil {
		return "", &fault.Error{Kind: fault.FailedPrecondition, Op: "find", Object: binary, Err: err}
	}
	return path, nil
}

var versionLine = regexp.MustCompile(`version ([0-9]+\.[0-9]+\.[0-9]+[^\n]*)`)

func versionOf(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", &fault.Error{Kind: fault.FailedPrecondition, Op: "run", Object: binary + " --version", Err: err}
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return "", fault.New(fault.FailedPrecondition, "run", binary+" --version", "it did not tell a version")
	}
	return string(m[1]), nil
}

// chooseAccel decides between KVM and TCG and says why.
func chooseAccel(ctx context.Context, binary string, o Options) (accelerator, error) {
	switch o.Accel {
	case AccelKVM:
		return kvmAccelerator("chosen by the operator"), nil
	case AccelTCG:
		return tcgAccelerator("chosen by the operator")
	case AccelAuto, "":
	default:
		return accelerator{}, fault.New(fault.Invalid, "choose", "accelerator "+o.Accel, "not one of auto, kvm, tcg")
	}
	probe := probeOnce(ctx, binary, o)
	if probe.Works {
		return kvmAccelerator(probe.Reason), nil
	}
	return tcgAccelerator(probe.Reason)
}

func tcgAccelerator(reason string) (accelerator, error) {
	khz, err := tsc.KHz()
	if err != nil {
		return accelerator{}, &fault.Error{Kind: fault.FailedPrecondition, Op: "find", Object: "the rate of the host's clock", Err: err}
	}
	return tcg(khz, reason), nil
}

// unchanged refuses to start a QEMU that was replaced since the driver was made: captures would
// name the wrong build.
func (d *Driver) unchanged() error {
	now, err := os.Stat(d.binary)
	if err != nil {
		return fault.Wrap(err, "look at", d.binary)
	}
	if d.installed != nil && (!os.SameFile(now, d.installed) || !now.ModTime().Equal(d.installed.ModTime())) {
		return fault.New(fault.FailedPrecondition, "start", d.binary, "it was replaced while roost ran").
			WithHint("restart roost: running sandboxes are adopted; those paused with the old build need it back")
	}
	return nil
}
