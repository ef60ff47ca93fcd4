package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/agent"
	"github.com/roosthq/roost/internal/host/disk/qcow2"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/installation"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/runtime/gvisor"
	"github.com/roosthq/roost/internal/host/runtime/microvm"
	"github.com/roosthq/roost/internal/host/sandbox"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
	"github.com/roosthq/roost/internal/host/vmm/qemu"
)

// runtimeAuto lets the host's abilities decide.
const runtimeAuto = "auto"

// runtimeNames are the runtimes of this version.
var runtimeNames = []string{firecracker.Name, qemu.Name, gvisor.Name}

// isolations from the strongest to the weakest: the order in which runtimes are taken. Of two with the
// same, the one that is tried first comes first.
var isolations = []runtime.Isolation{runtime.Hardware, runtime.Sentry, runtime.Emulated}

// candidate is a runtime that was tried on this host.
type candidate struct {
	name      string
	isolation runtime.Isolation
	// rt is nil when it does not work here, for the reason in err.
	rt  runtime.Runtime
	err error
	// why says what the trial showed, limits what holds for its sandboxes.
	why    string
	limits []doctor.Limit
}

// runtimes are those of this version, best first for this host.
type runtimes []candidate

// site is what a trial of a runtime needs to know of the host.
type site struct {
	opts         upOptions
	installation *installation.Installation
	// leaving: nothing needs to work, since nothing will be started.
	leaving bool
	// kernel is what is booted to see whether KVM works; guest a program for gVisor to run.
	kernel, guest string
	// kernelELF is the same kernel for who boots no other.
	kernelELF func() (string, error)
	log       *slog.Logger
}

// openRuntimes tries every runtime by doing the thing. The operator's choice comes first, and
// must work; without one the strongest isolation that works does, and something must.
func openRuntimes(ctx context.Context, s site) (runtimes, error) {
	// One after the other: all probes use the installation's probe uid.
	all := runtimes{openFirecracker(ctx, s), openQEMU(ctx, s), openGVisor(ctx, s)}
	if ctx.Err() != nil {
		return nil, fault.Wrap(ctx.Err(), "try", "runtimes")
	}
	all.sort(s.opts.runtime)
	if l, later := all[0].rt.(*lazy); later && !s.leaving {
		// What sandboxes will run in must work now.
		if _, err := l.get(ctx); err != nil {
			all[0].rt, all[0].err = nil, err
			all.sort(s.opts.runtime)
		}
	}
	if all[0].rt == nil && !s.leaving {
		return nil, all.failure(s.opts.runtime)
	}
	return all, nil
}

func (r runtimes) sort(chosen string) {
	slices.SortStableFunc(r, func(a, b candidate) int { return a.rank(chosen) - b.rank(chosen) })
}

// failure says why the chosen runtime, or every one, does not work.
func (r runtimes) failure(chosen string) error {
	var errs []error
	for _, c := range r {
		if chosen == runtimeAuto || c.name == chosen {
			errs = append(errs, fault.Wrap(c.err, "start", "runtime "+c.name))
		}
	}
	return errors.Join(errs...)
}

// rank is lower for what is better: the choice, then what works, by isolation.
func (c candidate) rank(chosen string) int {
	rank := slices.Index(isolations, c.isolation)
	switch {
	case c.name == chosen:
		return -1
	case c.rt == nil:
		return rank + len(isolations)
	default:
		return rank
	}
}

// openQEMU boots a guest under KVM to see whether that works. Without KVM it is the last choice
// and made when somebody asks for it.
func openQEMU(ctx context.Context, s site) candidate {
	c := candidate{name: qemu.Name, isolation: runtime.Emulated, limits: machineLimits}
	opts := qemu.Options{Accel: s.opts.accel, ProbeKernel: s.kernel, ProbeUID: s.installation.UIDs.UID(0), Logger: s.log}
	if c.why = translated(opts.Accel); c.why != "" {
		opts.Accel = qemu.AccelTCG
		if c.err = qemu.Installed(); c.err != nil {
			return c
		}
		c.rt = &lazy{
			name: c.name, isolation: c.isolation, caps: microvm.New(new(qemu.Driver), qcow2.New()).Capabilities(),
			open: func(ctx context.Context) (runtime.Runtime, error) {
				rt, _, err := newQEMU(ctx, opts)
				return rt, err
			},
		}
		return c
	}
	rt, why, err := newQEMU(ctx, opts)
	if err != nil {
		c.err = err
		return c
	}
	c.rt, c.why, c.isolation = rt, why, rt.Isolation()
	return c
}

// translated says why a guest's code is certainly translated; "" is only that it may not be.
func translated(accel string) (why string) {
	switch accel {
	case qemu.AccelTCG:
		return "no KVM, as the operator chose"
	case qemu.AccelKVM:
		return ""
	default:
		return qemu.WithoutKVM()
	}
}

func newQEMU(ctx context.Context, opts qemu.Options) (rt runtime.Runtime, why string, err error) {
	driver, err := qemu.New(ctx, opts)
	if err != nil {
		return nil, "", err
	}
	return microvm.New(driver, qcow2.New()), driver.AccelReason(), nil
}

// machineLimits are those of a VM: it has no more than it was made with.
var machineLimits = []doctor.Limit{
	{Name: "cpu", InForce: true, Why: "the machine's vCPUs; QEMU's own threads have none"},
	{Name: "memory", InForce: true, Why: "the machine's size; QEMU's own use has none"},
	{Name: "pids", InForce: true, Why: "none of the guest's is the host's"},
}

func openGVisor(ctx context.Context, s site) candidate {
	c := candidate{name: gvisor.Name, isolation: runtime.Sentry}
	builds := paths.Data(s.opts.data).Builds()
	rt, err := gvisor.New(ctx, gvisor.Options{
		Runsc: s.keptRunsc(builds), Builds: builds, CgroupParent: cgroupParent(s.installation),
		ProbeUID: s.installation.UIDs.UID(0), ProbeGuest: s.guest, Logger: s.log,
	})
	if err != nil {
		c.err = err
		return c
	}
	c.rt, c.why = rt, "a program ran in it"
	for _, l := range rt.Limits() {
		c.limits = append(c.limits, doctor.Limit(l))
	}
	return c
}

// keptRunsc is one of the builds that the installation keeps, for a roost that leaves a host which
// has none any more: it knows best what sandboxes of its own leave behind. "" is the usual one.
func (s site) keptRunsc(builds string) string {
	if _, err := gvisor.Find(); err == nil || !s.leaving {
		return ""
	}
	kept, _ := filepath.Glob(filepath.Join(builds, "runsc-*", "runsc"))
	if len(kept) == 0 {
		return ""
	}
	return kept[0]
}

// cgroupParent is the cgroup in which the installation's are.
func cgroupParent(in *installation.Installation) string { return "roost-" + in.ID }

// working are the runtimes for the sandbox manager; absent says why not the others.
func (r runtimes) working() (working []runtime.Runtime, absent map[string]error) {
	absent = map[string]error{}
	for _, c := range r {
		if c.rt != nil {
			working = append(working, c.rt)
		} else {
			absent[c.name] = c.err
		}
	}
	return working, absent
}

// reason is what was found out about the runtime.
func (c candidate) reason() string {
	if c.rt == nil {
		return fault.Message(c.err)
	}
	return c.why
}

// port is the kind of network slot to keep ready.
func (r runtimes) port() network.PortKind {
	if r[0].rt == nil {
		return network.Tap
	}
	return sandbox.PortOf(r[0].rt)
}

// tell prints what runs sandboxes, and why not the others.
func (r runtimes) tell(out io.Writer) {
	label := "runtime"
	for _, c := range r {
		if c.rt == nil {
			fmt.Fprintf(out, "%-8s %s: %s\n", "not", c.name, c.reason())
			continue
		}
		fmt.Fprintf(out, "%-8s %s, isolation %s (%s)\n", label, c.name, c.isolation, c.why)
		label = "also"
	}
}

// describe is what the host says of its runtimes.
func (r runtimes) describe() []agent.Runtime {
	out := make([]agent.Runtime, len(r))
	for i, c := range r {
		out[i] = agent.Runtime{
			Name: c.name, Isolation: string(c.isolation), Available: c.rt != nil,
			Reason: c.reason(), Hint: fault.HintOf(c.err),
		}
	}
	return out
}

// checks are doctor's lines on the runtimes.
func (r runtimes) checks() []doctor.Check {
	out := []doctor.Check{r.choice}
	for _, c := range r {
		out = append(out, c.check)
	}
	for _, c := range r {
		if c.rt != nil {
			out = append(out, func(context.Context) doctor.Finding { return doctor.Limits(c.name, c.limits) })
		}
	}
	return out
}

// choice is doctor's line on what runs a sandbox that asks for nothing.
func (r runtimes) choice(context.Context) doctor.Finding {
	best := r[0]
	f := doctor.Finding{Name: "runtime", Status: doctor.OK, Detail: fmt.Sprintf("%s, isolation %s: %s", best.name, best.isolation, best.why)}
	if best.isolation == runtime.Emulated {
		f.Status = doctor.Warn
		f.Hint = "guests are translated: about 15 times slower, and QEMU's makers promise no isolation; use gVisor, or a host with KVM, for code you do not trust"
	}
	return f
}

func (c candidate) check(context.Context) doctor.Finding {
	if c.rt == nil {
		hint := cmp.Or(fault.HintOf(c.err), "sandboxes run in the others")
		return doctor.Finding{Name: c.name, Status: doctor.Warn, Detail: "does not work here: " + c.reason(), Hint: hint}
	}
	detail := fmt.Sprintf("works, isolation %s: %s", c.isolation, c.why)
	if c.isolation == runtime.Emulated {
		detail += "; guests are translated, with no guarantee from QEMU's makers"
	}
	return doctor.Finding{Name: c.name, Status: doctor.OK, Detail: detail}
}
