package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
)

// instance is one running sandbox.
type instance struct {
	rt      *Runtime
	runDir  string
	build   build
	rec     instanceRecord
	network bool
	proc    *process.Process
	console *console
	// template: its capture ends it.
	template bool

	// frozen is what the caller said: the kernel runs on, since a checkpoint of a paused one
	// would restore to a paused one.
	frozen atomic.Bool
	// saving serialises captures.
	saving sync.Mutex
	saved  atomic.Bool

	stopped  atomic.Bool
	detached chan struct{}
	detach   sync.Once
	exited   chan struct{}
	exit     runtime.Exit
}

var _ runtime.Instance = (*instance)(nil)

func (r *Runtime) newInstance(runDir string, b build, rec instanceRecord, proc *process.Process, c *console, network bool) *instance {
	in := &instance{
		rt: r, runDir: runDir, build: b, rec: rec, network: network, proc: proc, console: c,
		detached: make(chan struct{}), exited: make(chan struct{}),
	}
	go in.watch()
	return in
}

// Adopt implements runtime.Runtime.
func (r *Runtime) Adopt(ctx context.Context, spec runtime.Spec, record json.RawMessage) (runtime.Instance, error) {
	rec, err := parseInstance(record)
	if err != nil {
		return nil, err
	}
	if rec.Identity.Driver != Name {
		return nil, fault.New(fault.Invalid, "adopt", "sandbox "+spec.ID, "it belongs to runtime "+rec.Identity.Driver)
	}
	if rec.BootID != process.BootID() {
		return nil, fault.New(fault.NotFound, "adopt", "sandbox "+spec.ID, "the host was rebooted since")
	}
	b, err := r.builds.find(rec.Identity.Build)
	if err != nil {
		return nil, err
	}
	proc, err := process.Open(rec.PID, rec.StartTime)
	if err != nil {
		return nil, fault.Wrap(err, "adopt", "sandbox "+spec.ID)
	}
	in, err := r.take(ctx, spec, b, rec, proc)
	if err != nil {
		proc.Release()
		return nil, fault.Wrap(err, "adopt", "sandbox "+spec.ID)
	}
	return in, nil
}

// take makes an instance of a sentry that runs.
func (r *Runtime) take(ctx context.Context, spec runtime.Spec, b build, rec instanceRecord, proc *process.Process) (*instance, error) {
	if owner(proc.PID) != rec.UID {
		return nil, fault.New(fault.NotFound, "find", "process "+strconv.Itoa(rec.PID), "it has another uid")
	}
	// What another agent was about, a capture say, is nobody's now. Root's are the commands.
	if err := endCommands(ctx, spec.RunDir, func(uid int) bool { return uid == 0 }); err != nil {
		return nil, err
	}
	c, err := openConsole(spec.RunDir)
	if err != nil {
		return nil, err
	}
	in := r.newInstance(spec.RunDir, b, rec, proc, c, rec.Network)
	in.template = rec.Booted
	return in, nil
}

// Record implements runtime.Instance.
func (in *instance) Record() (json.RawMessage, error) {
	rec := in.rec
	rec.Network, rec.Booted = in.network, in.template
	return json.Marshal(rec)
}

// Freeze implements runtime.Instance: the guest agent has stopped what is the user's, and runs
// on itself.
func (in *instance) Freeze(context.Context) error { return in.mark("freeze", true) }

// Thaw implements runtime.Instance.
func (in *instance) Thaw(context.Context) error { return in.mark("thaw", false) }

func (in *instance) mark(op string, frozen bool) error {
	if err := in.usable(op); err != nil {
		return err
	}
	in.frozen.Store(frozen)
	return nil
}

// usable refuses what a gone or detached instance cannot do.
func (in *instance) usable(op string) error {
	select {
	case <-in.detached:
		return fault.New(fault.FailedPrecondition, op, "sandbox", "it was detached")
	case <-in.exited:
		return fault.New(fault.FailedPrecondition, op, "sandbox", "it is gone: "+in.exit.Reason)
	default:
		return nil
	}
}

// Stop implements runtime.Instance. What failed is tried again by the next Stop.
func (in *instance) Stop(ctx context.Context) error {
	if in.isDetached() {
		return in.usable("stop")
	}
	if !in.isGone() {
		in.stopped.Store(true)
	}
	spec := runtime.Spec{RunDir: in.runDir, UID: in.rec.UID}
	if err := end(ctx, spec); err != nil {
		return err
	}
	select {
	case <-in.exited:
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "wait for", "the sentry's end")
	}
	if err := in.rt.tidy(ctx, in.runDir, in.rec.Leaf); err != nil {
		return err
	}
	if !in.saved.Load() {
		return nil
	}
	// What a capture has saved is in it; without its sentry the file means nothing.
	return fault.Wrap(os.RemoveAll(in.rec.Live), "remove", "live disk")
}

func (in *instance) isGone() bool {
	select {
	case <-in.exited:
		return true
	default:
		return false
	}
}

func (in *instance) isDetached() bool {
	select {
	case <-in.detached:
		return true
	default:
		return false
	}
}

// Detach implements runtime.Instance.
func (in *instance) Detach() {
	in.detach.Do(func() {
		close(in.detached)
		in.proc.Release()
		in.console.close()
	})
}

// Exited implements runtime.Instance.
func (in *instance) Exited() <-chan struct{} { return in.exited }

// Exit implements runtime.Instance; it waits until the instance is gone or detached.
func (in *instance) Exit() runtime.Exit {
	select {
	case <-in.exited:
		return in.exit
	case <-in.detached:
		return runtime.Exit{Reason: "detached"}
	}
}

// describe says how it ended.
func (in *instance) describe(s process.Status) runtime.Exit {
	e := ending{
		status: s, oom: in.rt.cgroups.oomKills(in.rec.Leaf),
		panicked: firstLine(filepath.Join(in.runDir, panicLog)), said: in.console.log.recent(),
	}
	exit := runtime.Exit{Reason: e.reason(), Requested: in.stopped.Load(), At: s.At}
	if exit.Requested {
		exit.Reason = "stopped"
	}
	return exit
}

// drain lets the console's reader reach the end of what a dead sandbox said last: nobody holds
// the FIFO for writing any more, so that is at once.
func (in *instance) drain() {
	in.console.hurry()
	select {
	case <-in.console.done:
	case <-time.After(500 * time.Millisecond):
	}
	in.console.close()
}

// Console implements runtime.Instance.
func (in *instance) Console() ([]byte, error) { return readConsole(in.runDir) }

// Usage implements runtime.Instance.
func (in *instance) Usage() (runtime.Usage, error) {
	if err := in.usable("measure"); err != nil {
		return runtime.Usage{}, err
	}
	memory, ok := in.rt.cgroups.memoryUsed(in.rec.Leaf)
	var err error
	if !ok {
		memory, err = uidMemory(in.rec.UID)
	}
	disk, e := allocated(in.rec.Live)
	return runtime.Usage{MemoryBytes: memory, DiskBytes: disk}, errors.Join(err, e)
}

// Stopped implements runtime.Instance.
func (in *instance) Stopped() string {
	if in.usable("look at") != nil {
		return ""
	}
	return in.proc.Stopped()
}
