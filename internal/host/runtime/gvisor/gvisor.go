package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// Name of the runtime.
const Name = "gvisor"

// Options configure a Runtime.
type Options struct {
	// Runsc is the binary; "" looks at $ROOST_RUNSC, beside the running program, and in PATH.
	Runsc string
	// Builds is the directory that keeps every build that something still needs.
	Builds string
	// CgroupParent is the cgroup that sandboxes' cgroups are made in, a plain name.
	CgroupParent string
	// ProbeUID is the uid that the probe runs under.
	ProbeUID int
	// ProbeGuest is a static program that knows --version, run by the probe; "" is runsc itself.
	ProbeGuest string
	// Logger gets what no caller is told; nil discards.
	Logger *slog.Logger
}

// Runtime runs sandboxes in gVisor.
type Runtime struct {
	builds  *builds
	build   build
	cpu     string
	cgroups cgroups
	// flags are further ones for runsc, for tests.
	flags []string
}

var (
	_ runtime.Runtime = (*Runtime)(nil)
	_ runtime.Keeper  = (*Runtime)(nil)
)

// New finds runsc, keeps it by content, and runs something in it: where that does not work the
// error says why.
func New(ctx context.Context, o Options) (*Runtime, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	path, err := find(o.Runsc)
	if err != nil {
		return nil, err
	}
	kept, err := openBuilds(o.Builds)
	if err != nil {
		return nil, err
	}
	b, err := kept.install(path)
	if err != nil {
		return nil, err
	}
	r := &Runtime{builds: kept, build: b, cpu: cpuID()}
	if r.cgroups, err = probe(ctx, kept, b, o); err != nil {
		return nil, err
	}
	return r, nil
}

func (o Options) validate() error {
	bad := func(field, why string) error {
		return fault.New(fault.Invalid, "start", "gVisor", field+" "+why)
	}
	switch {
	case !filepath.IsAbs(o.Builds):
		return bad("Builds", "must be an absolute path")
	case o.CgroupParent == "" || filepath.Base(o.CgroupParent) != o.CgroupParent:
		return bad("CgroupParent", "must be a plain name")
	case o.ProbeUID == 0:
		return bad("ProbeUID", "must be a uid that nothing else runs under")
	}
	return nil
}

// Name implements runtime.Runtime.
func (r *Runtime) Name() string { return Name }

// Isolation implements runtime.Runtime.
func (r *Runtime) Isolation() runtime.Isolation { return runtime.Sentry }

// Capabilities implements runtime.Runtime.
func (r *Runtime) Capabilities() runtime.Capabilities {
	return runtime.Capabilities{TakesNamespace: true, FixedDisk: true}
}

// Identity implements runtime.Runtime.
func (r *Runtime) Identity() map[string]string { return r.identity().asMap() }

func (r *Runtime) identity() identity {
	return identity{Driver: Name, Build: r.build.hash, Machine: machine, CPU: r.cpu, Disk: diskFormat}
}

// Limits says which limits hold for sandboxes of this host, and why others do not.
func (r *Runtime) Limits() []Limit { return r.cgroups.limits }

// Boot implements runtime.Runtime.
func (r *Runtime) Boot(ctx context.Context, spec runtime.Spec, opts runtime.BootOptions) (runtime.Instance, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	st, err := r.bootFrom(spec, opts.From)
	if err != nil {
		return nil, fault.Wrap(err, "boot", "captured disk")
	}
	guest, err := r.builds.keepGuest(spec.Guest.Path)
	if err != nil {
		return nil, err
	}
	st.rec = instanceRecord{
		Identity: r.identity(), Guest: guest, Tree: spec.Template.Tree, Template: spec.Template.Digest,
		VCPUs: spec.Resources.VCPUs, MemoryMB: spec.Resources.MemoryMB, DiskMB: spec.Resources.DiskSizeMB,
	}
	st.rec.Identity.Build = st.build.hash
	in, err := r.start(ctx, spec, st)
	if err != nil {
		return nil, fault.Wrap(err, "boot", "sandbox "+spec.ID)
	}
	in.template = opts.Template
	return in, nil
}

// bootFrom is how runsc is told to begin with a captured disk, in the build that wrote it, or with
// the template's.
func (r *Runtime) bootFrom(spec runtime.Spec, from *runtime.Capture) (start, error) {
	if from == nil {
		return start{build: r.build, verb: "run"}, nil
	}
	rec, err := r.loadable(spec, *from, diskKind)
	if err != nil {
		return start{}, err
	}
	b, err := r.builds.find(rec.Identity.Build)
	return start{
		build: b, verb: "run", args: []string{"--fs-restore-image-path=" + from.Dir},
		check: func(ctx context.Context) error { return checkSums(ctx, from.Dir, rec.Files) },
	}, err
}

// Restore implements runtime.Runtime.
func (r *Runtime) Restore(ctx context.Context, spec runtime.Spec, from runtime.Capture) (runtime.Instance, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	rec, err := r.loadable(spec, from, fullKind)
	if err != nil {
		return nil, fault.Wrap(err, "restore", "capture")
	}
	b, err := r.builds.find(rec.Identity.Build)
	if err != nil {
		return nil, fault.Wrap(err, "restore", "capture")
	}
	st := start{
		build: b, verb: "restore", args: restoreArgs(from.Dir),
		check: func(ctx context.Context) error { return checkSums(ctx, from.Dir, rec.Files) },
		rec: instanceRecord{
			Identity: rec.Identity, Guest: rec.Guest, Tree: rec.tree(spec), Template: rec.Template,
			VCPUs: rec.VCPUs, MemoryMB: rec.MemoryMB, DiskMB: rec.DiskMB,
		},
	}
	in, err := r.start(ctx, spec, st)
	if err != nil {
		return nil, fault.Wrap(err, "restore", "sandbox "+spec.ID)
	}
	in.frozen.Store(true)
	return in, nil
}

// Discard implements runtime.Runtime.
func (r *Runtime) Discard(ctx context.Context, spec runtime.Spec) error {
	if err := r.Reap(ctx, spec); err != nil {
		return err
	}
	return fault.Wrap(os.RemoveAll(liveDir(spec)), "remove", "live disk")
}

// Reap implements runtime.Runtime.
func (r *Runtime) Reap(ctx context.Context, spec runtime.Spec) error {
	if err := end(ctx, spec); err != nil {
		return err
	}
	return r.tidy(ctx, spec.RunDir, leafOf(spec))
}

// tidy removes what an ended sandbox leaves in its run directory and its cgroup. Console and
// last words stay.
func (r *Runtime) tidy(ctx context.Context, runDir, leaf string) error {
	var errs []error
	for _, name := range []string{stateDir, bundleDir, pidFile, consoleFIFO} {
		errs = append(errs, os.RemoveAll(filepath.Join(runDir, name)))
	}
	if leaf != "" {
		errs = append(errs, r.cgroups.remove(ctx, leaf))
	}
	return fault.Wrap(errors.Join(errs...), "remove", "state of an ended sandbox")
}

// ConsoleOf implements runtime.Runtime.
func (r *Runtime) ConsoleOf(spec runtime.Spec) ([]byte, error) { return readConsole(spec.RunDir) }

// Compact implements runtime.Runtime: every capture is whole, there is nothing to merge.
func (r *Runtime) Compact(context.Context, runtime.Spec, runtime.Capture) (json.RawMessage, bool, error) {
	return nil, false, nil
}

// Files implements runtime.Runtime.
func (r *Runtime) Files(c runtime.Capture) ([]string, error) {
	rec, err := parseCapture(c)
	if err != nil {
		return nil, err
	}
	files := []string{r.builds.runsc(rec.Identity.Build), rec.Tree}
	if rec.Kind != diskKind { // what is booted from it runs the guest agent of that day
		files = append(files, r.builds.guest(rec.Guest))
	}
	return files, nil
}

// NeededBy implements runtime.Keeper.
func (r *Runtime) NeededBy(record json.RawMessage) ([]string, error) {
	rec, err := parseInstance(record)
	if err != nil {
		return nil, err
	}
	return []string{r.builds.runsc(rec.Identity.Build), r.builds.guest(rec.Guest), rec.Tree}, nil
}

// Retire implements runtime.Keeper.
func (r *Runtime) Retire(used map[string]bool) error { return r.builds.retire(used, r.build.path) }

// checkSpec refuses what could only fail half-way.
func checkSpec(spec runtime.Spec) error {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "start", "sandbox "+spec.ID, why)
	}
	switch {
	case spec.UID == 0:
		return bad("it has no uid: gVisor runs each sandbox under one of its own")
	case spec.Template.Tree == "":
		return fault.New(fault.FailedPrecondition, "start", "sandbox "+spec.ID, "its template has no file tree for gVisor").
			WithHint("the template was built by an older roost: build it again")
	case spec.Resources.DiskSizeMB <= 0 || spec.Resources.MemoryMB <= 0:
		return bad("memory and disk need a size")
	case len(controlSocket(spec.RunDir)) > maxSocketPath:
		return fault.New(fault.FailedPrecondition, "start", "sandbox "+spec.ID, "its directory's path is too long for a socket: "+spec.RunDir).
			WithHint("use a data directory with a shorter path")
	}
	return nil
}

// rollback runs the undo steps when the operation failed.
func rollback(ctx context.Context, undos *undo.Stack, err *error) {
	if *err != nil {
		*err = errors.Join(*err, undos.Rollback(ctx))
	}
}
