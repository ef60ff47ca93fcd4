package gvisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// start is what a sandbox starts from.
type start struct {
	build build
	verb  string
	args  []string
	rec   instanceRecord
	// check, if any, runs before the command: what it refuses is not started.
	check func(context.Context) error
}

// start runs a sandbox. When it fails, everything of it is ended and removed; so is what an
// earlier start of the same directory may have left.
func (r *Runtime) start(ctx context.Context, spec runtime.Spec, st start) (_ *instance, err error) {
	if err := r.Discard(ctx, spec); err != nil {
		return nil, err
	}
	var undos undo.Stack
	defer rollback(ctx, &undos, &err)
	undos.Push("start", func(ctx context.Context) error { return r.Discard(ctx, spec) })
	if err := r.prepare(spec, &st.rec); err != nil {
		return nil, err
	}
	c, theirs, err := newConsole(spec.RunDir)
	if err != nil {
		return nil, err
	}
	undos.Push("console", func(context.Context) error { c.close(); return nil })
	err = st.run(ctx, r.command(st.build, spec.RunDir, st.rec.Leaf, spec.Port.Namespace, st.startArgs(spec.RunDir), theirs))
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, err
	}
	proc, err := r.started(spec, &st.rec)
	if err != nil {
		return nil, err
	}
	undos.Discard()
	return r.newInstance(spec.RunDir, st.build, st.rec, proc, c, spec.Port.Namespace != ""), nil
}

// run checks, and runs the command.
func (st start) run(ctx context.Context, c command) error {
	if st.check != nil {
		if err := st.check(ctx); err != nil {
			return err
		}
	}
	return c.run(ctx)
}

// prepare writes what runsc starts from.
func (r *Runtime) prepare(spec runtime.Spec, rec *instanceRecord) error {
	rec.Live, rec.UID = liveDir(spec), spec.UID
	if r.cgroups.version != 0 {
		rec.Leaf = leafOf(spec)
	}
	if err := os.Remove(filepath.Join(spec.RunDir, panicLog)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, "remove", "panic log of an earlier run")
	}
	for _, dir := range []string{rec.Live, filepath.Join(spec.RunDir, stateDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fault.Wrap(err, "make", dir)
		}
	}
	return r.bundleOf(spec, *rec).write(filepath.Join(spec.RunDir, bundleDir))
}

func (st start) startArgs(runDir string) []string {
	args := append([]string{st.verb, "--detach", "--bundle=" + filepath.Join(runDir, bundleDir),
		"--pid-file=" + filepath.Join(runDir, pidFile)}, st.args...)
	return append(args, container)
}

func (r *Runtime) command(b build, runDir, leaf, namespace string, args []string, console *os.File) command {
	return command{
		build: b, runDir: runDir, network: namespace != "", cgroups: leaf != "", console: console, more: r.flags, args: args,
	}
}

// started takes hold of the sentry that a command has left running.
func (r *Runtime) started(spec runtime.Spec, rec *instanceRecord) (*process.Process, error) {
	raw, err := os.ReadFile(filepath.Join(spec.RunDir, pidFile))
	if err != nil {
		return nil, fault.Wrap(err, "read", "pid of the sentry")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fault.Wrap(err, "read", "pid of the sentry")
	}
	proc, err := process.Open(pid, 0)
	if err != nil {
		return nil, r.died(spec, *rec, err)
	}
	if owner(pid) != spec.UID {
		proc.Release()
		return nil, r.died(spec, *rec, fault.New(fault.NotFound, "find", "process "+strconv.Itoa(pid), "it has another uid"))
	}
	rec.PID, rec.StartTime, rec.BootID = pid, proc.StartTime, process.BootID()
	return proc, nil
}

// died says what can be known of a sandbox that ended before it could be watched.
func (r *Runtime) died(spec runtime.Spec, rec instanceRecord, err error) error {
	why := ending{oom: r.cgroups.oomKills(rec.Leaf), panicked: firstLine(filepath.Join(spec.RunDir, panicLog))}
	return fault.New(fault.Internal, "start", "sandbox "+spec.ID, "it ended at once: "+why.reason()+" ("+err.Error()+")")
}

// restoreArgs: memory is loaded before the sandbox runs; the package comment says why.
func restoreArgs(dir string) []string { return []string{"--image-path=" + dir} }
