package firecracker

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/host/vmm/console"
)

// Name is the driver's name in handles.
const Name = "firecracker"

// cmdline is the driver's part of the kernel command line: console; a panic reboots at once, by
// the keyboard controller, which is Firecracker's end; and that controller has nothing else.
const cmdline = "console=ttyS0 reboot=k panic=-1 i8042.noaux i8042.nomux i8042.dumbkbd"

// Options configure a Driver.
type Options struct {
	// Binary and Jailer are paths; "" is what Find finds.
	Binary, Jailer string
	// SeccompFilter is the path of a compiled filter to use in place of Firecracker's own: for one
	// that was built with a C library whose system calls are others.
	SeccompFilter string
	// Flags are more arguments for Firecracker.
	Flags []string
	// CPUTemplate hides differences of CPUs ("T2", …); "" is none.
	CPUTemplate string
	// CgroupParent is the cgroup that VMs' cgroups are made in, a plain name; "" is no cgroups.
	CgroupParent string
	// DiskRate and NetRate bound what a VM reads and writes, and what it sends and what it receives, in
	// bytes a second; 0 is no bound.
	DiskRate, NetRate int64
	// ProbeDir is a directory in which the probe makes its own: on the file system of VMs'
	// directories, since a jail needs one that runs programs and has devices. "" is os.TempDir.
	ProbeDir string
	// ProbeKernel is the ELF kernel that the probe boots.
	ProbeKernel string
	// ProbeUID is the uid and gid that the probe runs under; 0 means 65534.
	ProbeUID int
	// Logger gets phases of starts at debug level; nil discards.
	Logger *slog.Logger
}

// Driver implements vmm.Driver.
type Driver struct {
	o         Options
	installed []program
	cgroups   cgroups
	identity  vmm.Identity
	log       *slog.Logger
}

var _ vmm.Driver = (*Driver)(nil)

// New finds Firecracker and its jailer, refuses what is too old, and computes the identity. It
// does not try KVM: see Probe.
func New(ctx context.Context, o Options) (*Driver, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o, err := findBoth(o)
	if err != nil {
		return nil, err
	}
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	d := &Driver{o: o, log: o.Logger}
	var version string
	if d.installed, version, err = inspect(ctx, o); err != nil {
		return nil, err
	}
	d.cgroups = findCgroups(o.CgroupParent)
	d.identity = vmm.Identity{
		Build: d.installed[0].sum, Version: version, Machine: Name, CPU: cpuOf(o.CPUTemplate), Cmdline: cmdline,
	}
	return d, nil
}

// checkOptions refuses flags by which VMs would be less confined or their saved state another's.
func checkOptions(o Options) error {
	for _, flag := range o.Flags {
		switch flag {
		case "--enable-pci", "--no-seccomp", "--no-api", "--api-sock", "--config-file", "--id":
			return invalid("flag", flag, "roost does not run firecracker with it")
		}
	}
	if p := o.CgroupParent; p != "" && (filepath.Base(p) != p || p == "..") {
		return invalid("cgroup parent", p, "not a plain name")
	}
	if o.SeccompFilter != "" {
		if err := trusted(o.SeccompFilter); err != nil {
			return err
		}
	}
	return nil
}

// Name implements vmm.Driver.
func (d *Driver) Name() string { return Name }

// Capabilities implements vmm.Driver.
func (d *Driver) Capabilities() vmm.Capabilities {
	return vmm.Capabilities{Accelerated: true, BlockDrive: true, OwnMemory: true, OpensTap: true, ELFKernel: true}
}

// Identity implements vmm.Driver.
func (d *Driver) Identity() vmm.Identity { return d.identity }

// Limits says which limits of VMs are in force, for doctor.
func (d *Driver) Limits() []Limit { return d.cgroups.limits }

// ReadConsole implements vmm.Driver.
func (d *Driver) ReadConsole(dir string) ([]byte, error) { return console.Read(dir) }

// unchanged refuses to start programs that were replaced since the driver was made: captures
// would name the wrong build.
func (d *Driver) unchanged() error {
	for _, p := range d.installed {
		now, err := os.Stat(p.path)
		if err != nil {
			return fault.Wrap(err, "look at", p.path)
		}
		if !os.SameFile(now, p.info) || !now.ModTime().Equal(p.info.ModTime()) {
			return fault.New(fault.FailedPrecondition, "start", p.path, "it was replaced while roost ran").
				WithHint("restart roost: running sandboxes are adopted; those paused with the old build need it back")
		}
	}
	return nil
}
