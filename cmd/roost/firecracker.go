package main

import (
	"context"
	"errors"
	"os"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/runtime/microvm"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
)

// openFirecracker boots a guest by the jailer under KVM, and makes a disk of device-mapper, to see
// whether both work: one is of no use without the other (docs/decisions/0012).
func openFirecracker(ctx context.Context, s site) candidate {
	c := candidate{name: firecracker.Name, isolation: runtime.Hardware}
	driver, err := s.newFirecracker(ctx)
	if err != nil {
		c.err = err
		return c
	}
	for _, l := range driver.Limits() {
		c.limits = append(c.limits, doctor.Limit(l))
	}
	disks, err := devicemapper.New(devicemapper.Options{Installation: s.installation.ID})
	if err != nil {
		c.err = withModules(err)
		return c
	}
	if !s.leaving {
		c.why, err = s.tryFirecracker(ctx, driver, disks)
	}
	if err != nil {
		c.err = errors.Join(err, disks.Close())
		return c
	}
	c.rt = microvm.New(driver, disks)
	return c
}

// newFirecracker finds the programs. What costs most, the kernel to try them with, comes last.
func (s site) newFirecracker(ctx context.Context) (*firecracker.Driver, error) {
	if s.opts.accel == qemu.AccelTCG && s.opts.runtime != firecracker.Name && !s.leaving {
		return nil, fault.New(fault.FailedPrecondition, "use", "firecracker", translated(s.opts.accel)).WithHint("leave out --accel tcg")
	}
	opts := firecracker.Options{
		Binary: s.opts.firecracker, Jailer: s.opts.jailer, CgroupParent: cgroupParent(s.installation),
		DiskRate: s.opts.diskRate << 20, NetRate: s.opts.netRate << 20,
		ProbeDir: paths.Data(s.opts.data).Cache(), ProbeUID: s.installation.UIDs.UID(0), Logger: s.log,
	}
	if !s.leaving {
		var err error
		if opts.Binary, err = found(opts.Binary, firecracker.EnvBinary, "firecracker"); err != nil {
			return nil, err
		}
		if opts.Jailer, err = found(opts.Jailer, firecracker.EnvJailer, "jailer"); err != nil {
			return nil, err
		}
		if opts.ProbeKernel, err = s.kernelELF(); err != nil {
			return nil, err
		}
	}
	return firecracker.New(ctx, opts)
}

func found(path, env, name string) (string, error) {
	if path != "" {
		return path, nil
	}
	return firecracker.Find(env, name)
}

func (s site) tryFirecracker(ctx context.Context, driver *firecracker.Driver, disks *devicemapper.Driver) (why string, err error) {
	// The disk first: it is the cheaper trial.
	if err := disks.Probe(ctx, paths.Data(s.opts.data).Cache()); err != nil {
		return "", withModules(err)
	}
	r := driver.Probe(ctx)
	if !r.Works {
		return "", fault.New(fault.FailedPrecondition, "", "", r.Reason).WithHint(r.Hint)
	}
	return r.Reason + ", and a device-mapper disk was read through", nil
}

// modules is how a host gets what device-mapper disks are made of.
const modules = "modprobe -a loop dm_snapshot dm_zero; printf 'loop\\ndm_snapshot\\ndm_zero\\n' >/etc/modules-load.d/roost.conf keeps it"

// withModules says how to get device-mapper, where the error has nothing better to say.
func withModules(err error) error {
	if fault.HintOf(err) != "" {
		return err
	}
	return &fault.Error{Kind: fault.KindOf(err), Err: err, Hint: modules}
}

// deviceMapper is doctor's line on what Firecracker's disks are: it makes one and reads through it.
func deviceMapper(id string, dir func() string) doctor.Check {
	return func(ctx context.Context) doctor.Finding {
		f := doctor.Finding{Name: "device-mapper", Status: doctor.OK, Detail: "a disk over a base image was made, read and written, and removed"}
		disks, err := devicemapper.New(devicemapper.Options{Installation: id})
		if err == nil {
			err = errors.Join(disks.Probe(ctx, dir()), disks.Close())
		}
		if err != nil {
			err = withModules(err)
			f.Status, f.Detail, f.Hint = doctor.Warn, fault.Message(err)+": no Firecracker; QEMU's disks and gVisor need none", fault.HintOf(err)
		}
		return f
	}
}

// firecrackerPrograms looks for them; only a start of roost tries them.
func firecrackerPrograms(context.Context) doctor.Finding {
	f := doctor.Finding{Name: firecracker.Name, Status: doctor.OK, Detail: "firecracker and jailer are there; `roost up` tries them"}
	if err := firecracker.Installed(); err != nil {
		f.Status, f.Detail, f.Hint = doctor.Warn, fault.Message(err)+": no Firecracker", fault.HintOf(err)
	}
	return f
}

// doctorsOwn is the installation of a doctor that has none: it has four characters, and no installation
// is given the name.
const doctorsOwn = "-dr-"

// removeDevices gives back the block devices of an installation that nothing uses any more, whether its
// Firecracker is still there or not.
func removeDevices(ctx context.Context, id string) error {
	disks, err := devicemapper.New(devicemapper.Options{Installation: id})
	if fault.Is(err, fault.FailedPrecondition) || errors.Is(err, os.ErrNotExist) {
		return nil // a host without device-mapper has none
	}
	if err != nil {
		return err
	}
	found, err := disks.Mapped(ctx)
	errs := []error{err}
	for _, m := range found {
		errs = append(errs, disks.Unmap(ctx, m))
	}
	return errors.Join(append(errs, disks.Close())...)
}
