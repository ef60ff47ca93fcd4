package gvisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// probe runs a program in a sandbox to its end: with limits, and where that fails without.
func probe(ctx context.Context, kept *builds, b build, o Options) (cgroups, error) {
	if o.ProbeGuest != "" {
		// As a sandbox runs it: its uid could not enter just any directory.
		hash, err := kept.keepGuest(o.ProbeGuest)
		if err != nil {
			return cgroups{}, err
		}
		o.ProbeGuest = kept.guest(hash)
	}
	c := findCgroups(o.CgroupParent)
	if c.version != 0 {
		err := probeOnce(ctx, b, o, c)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return c, err
		}
		c = c.none("runsc cannot use the host's cgroups: " + err.Error())
	}
	if err := probeOnce(ctx, b, o, c); err != nil {
		return c, &fault.Error{
			Kind: fault.FailedPrecondition, Op: "run", Object: "a program in gVisor", Err: err,
			Hint: "gVisor needs root, user namespaces and ptrace or seccomp; in a container, a privileged one",
		}
	}
	o.Logger.Warn("sandboxes run without limits", "component", Name, "why", c.limits)
	return c, nil
}

func probeOnce(ctx context.Context, b build, o Options, c cgroups) (err error) {
	dir, err := os.MkdirTemp("", "roost-gvisor-")
	if err != nil {
		return fault.Wrap(err, "make", "probe directory")
	}
	var undos undo.Stack
	defer func() { err = errors.Join(err, undos.Rollback(ctx)) }()
	undos.Push("directory", func(context.Context) error { return os.RemoveAll(dir) })
	// A plain directory as root is bound by the gofer, under the uid.
	if err := os.Chmod(dir, 0o711); err != nil {
		return fault.Wrap(err, "open", "probe directory")
	}
	spec := runtime.Spec{ID: "probe", RunDir: dir, UID: o.ProbeUID}
	r := &Runtime{cgroups: c}
	undos.Push("sandbox", func(ctx context.Context) error { return r.Reap(ctx, spec) })
	program := b.path
	if o.ProbeGuest != "" {
		program = o.ProbeGuest
	}
	bundle := bundle{
		args: []string{guestMount + "/" + filepath.Base(program), "--version"}, hostname: "probe",
		root: filepath.Join(dir, "root"), programs: filepath.Dir(program), uid: o.ProbeUID,
	}
	leaf := ""
	if c.version != 0 {
		leaf = leafOf(spec)
		bundle.leaf, bundle.resources = c.path(leaf), c.resources(1, 512)
	}
	// The mount point too: under the uid the gofer can make none.
	for _, d := range []string{filepath.Join(bundle.root, guestMount), filepath.Join(dir, stateDir)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fault.Wrap(err, "make", "probe directory")
		}
	}
	if err := bundle.write(filepath.Join(dir, bundleDir)); err != nil {
		return err
	}
	args := []string{"run", "--bundle=" + filepath.Join(dir, bundleDir), container}
	return r.command(b, dir, leaf, "", args, nil).run(ctx)
}
