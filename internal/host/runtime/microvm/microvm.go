package microvm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/undo"
)

// Runtime runs sandboxes in microVMs.
type Runtime struct {
	vmm   vmm.Driver
	disk  disk.Driver
	cache *memory.Cache
	// watching is held by whoever verifies layers in the background.
	watching chan struct{}
}

var (
	_ runtime.Runtime = (*Runtime)(nil)
	_ runtime.Trimmer = (*Runtime)(nil)
	_ runtime.Holder  = (*Runtime)(nil)
)

// Fits says why a VMM cannot use the disks of a driver: one takes chains of files, the other makes
// devices, or the other way round.
func Fits(v vmm.Driver, d disk.Driver) error {
	if v.Capabilities().BlockDrive == d.Capabilities().BlockDevice {
		return nil
	}
	return fault.New(fault.Invalid, "compose", v.Name()+" and "+d.Name(), "the VMM cannot use disks of that kind").
		WithHint("firecracker goes with device-mapper, qemu with qcow2")
}

// New composes a runtime of what fits (Fits).
func New(v vmm.Driver, d disk.Driver) *Runtime {
	return &Runtime{vmm: v, disk: d, cache: memory.NewCache(), watching: make(chan struct{}, 1)}
}

// Name of the runtime: that of its VMM.
func (r *Runtime) Name() string { return r.vmm.Name() }

// Isolation is hardware under KVM, emulated otherwise.
func (r *Runtime) Isolation() runtime.Isolation {
	if r.vmm.Capabilities().Accelerated {
		return runtime.Hardware
	}
	return runtime.Emulated
}

// Capabilities of a guest with a kernel of its own.
func (r *Runtime) Capabilities() runtime.Capabilities {
	return runtime.Capabilities{
		GuestBoots: true, FreezesGuest: true, DiskApart: true,
		OpensTap: r.vmm.Capabilities().OpensTap, ELFKernel: r.vmm.Capabilities().ELFKernel,
	}
}

// Identity names the VMM build, machine, CPU and kernel command line.
func (r *Runtime) Identity() map[string]string {
	id := r.vmm.Identity()
	return map[string]string{
		"driver": r.vmm.Name(), "build": id.Build, "machine": id.Machine, "cpu": id.CPU,
		"cmdline": id.Cmdline, "disk": r.disk.Name(),
	}
}

// Boot starts a kernel over a fresh disk, on the template's image or a capture's disk.
func (r *Runtime) Boot(ctx context.Context, spec runtime.Spec, opts runtime.BootOptions) (_ runtime.Instance, err error) {
	var undos undo.Stack
	defer rollback(ctx, &undos, &err)
	stack, size, err := bootDisk(spec, opts.From)
	if err != nil {
		return nil, err
	}
	layers := r.verify(ctx, stack.Layers)
	defer func() { layers.end(ctx, &err) }()
	in := &instance{rt: r, identity: r.vmm.Identity(), vcpus: spec.Resources.VCPUs, template: opts.Template}
	if err = in.open(ctx, spec, stack, size, &undos); err != nil {
		return nil, err
	}
	if in.ram, err = r.bootMemory(spec.Resources.MemoryMB, opts.Template); err != nil {
		return nil, err
	}
	undos.Push("release memory", in.ram.release)
	cfg, err := r.config(ctx, spec, in)
	if err != nil {
		return nil, err
	}
	if cfg.Kernel, err = r.kernel(spec.Template); err != nil {
		return nil, err
	}
	if err = layers.wait(); err != nil {
		return nil, err
	}
	if in.vm, err = r.vmm.Boot(ctx, cfg); err != nil {
		return nil, err
	}
	undos.Discard()
	in.started(layers)
	return in, nil
}

// bootDisk is what a kernel boots over, and how large its disk is. What a capture's disk holds
// depends on no VMM, so its identity does not matter.
func bootDisk(spec runtime.Spec, from *runtime.Capture) (disk.Stack, int64, error) {
	base := disk.Base{Path: spec.Template.Disk, SizeBytes: spec.Template.DiskBytes}
	if from == nil {
		return disk.Stack{Base: base}, diskBytes(spec.Resources), nil
	}
	rec, err := parseCapture(*from)
	rec.Disk.Base.Path = spec.Template.Disk
	return rec.Disk, max(diskBytes(spec.Resources), rec.DiskBytes), err
}

// open makes the instance's live disk.
func (in *instance) open(ctx context.Context, spec runtime.Spec, stack disk.Stack, size int64, undos *undo.Stack) error {
	live, err := in.rt.disk.Open(ctx, stack, size, spec.DiskDir, spec.DiskIndex)
	if err != nil {
		return err
	}
	undos.Push("remove live disk", func(ctx context.Context) error { return in.rt.disk.RemoveLive(ctx, live) })
	in.top.live, in.top.index = live, spec.DiskIndex
	return nil
}

// Restore starts a VM from a capture, over a fresh layer on the captured disk.
func (r *Runtime) Restore(ctx context.Context, spec runtime.Spec, from runtime.Capture) (_ runtime.Instance, err error) {
	var undos undo.Stack
	defer rollback(ctx, &undos, &err)
	rec, err := parseCapture(from)
	if err != nil {
		return nil, err
	}
	if err = rec.restorable(r.vmm.Identity()); err != nil {
		return nil, err
	}
	// Where images lie is the host's affair, not the capture's.
	rec.Disk.Base.Path = spec.Template.Disk
	layers := r.verify(ctx, rec.Disk.Layers)
	defer func() { layers.end(ctx, &err) }()
	in := &instance{rt: r, identity: r.vmm.Identity(), vcpus: rec.VCPUs}
	spec.Resources.VCPUs, spec.Resources.MemoryMB = rec.VCPUs, rec.MemoryMB
	if err = in.open(ctx, spec, rec.Disk, max(diskBytes(spec.Resources), rec.DiskBytes), &undos); err != nil {
		return nil, err
	}
	if in.ram, err = r.savedMemory(ctx, spec, rec); err != nil {
		return nil, err
	}
	undos.Push("release memory", in.ram.release)
	if err = r.load(ctx, spec, rec, in); err != nil {
		return nil, err
	}
	undos.Push("end VM", func(ctx context.Context) error { return in.vm.Kill(ctx) })
	if err = layers.wait(); err != nil {
		return nil, err
	}
	undos.Discard()
	in.started(layers)
	return in, nil
}

// load starts the VMM with the saved pages and device state.
func (r *Runtime) load(ctx context.Context, spec runtime.Spec, rec captureRecord, in *instance) error {
	state, err := openState(rec.State, rec.StateSum)
	if err != nil {
		return err
	}
	defer state.Close()
	cfg, err := r.config(ctx, spec, in)
	if err != nil {
		return err
	}
	var prepare func(vmm.Mapping) error
	if !r.vmm.Capabilities().OwnMemory {
		prepare = func(m vmm.Mapping) error { return applyPages(ctx, rec, in.ram.mapping(m)) }
	}
	if in.vm, err = in.ram.serve(ctx, func(ctx context.Context) (vmm.VM, error) {
		return r.vmm.Restore(ctx, cfg, state, prepare)
	}); err != nil {
		return err
	}
	if size := in.top.live.SizeBytes; size > rec.DiskBytes {
		if err := in.vm.GrowDisk(ctx, size); err != nil {
			return errors.Join(err, in.vm.Kill(ctx))
		}
	}
	return nil
}

// config makes the VMM's configuration for an instance's disk and memory.
func (r *Runtime) config(ctx context.Context, spec runtime.Spec, in *instance) (vmm.Config, error) {
	att, err := r.disk.Attach(ctx, in.top.live)
	if err != nil {
		return vmm.Config{}, err
	}
	return vmm.Config{
		ID: spec.ID, Dir: spec.RunDir,
		VCPUs: spec.Resources.VCPUs, MemoryMB: spec.Resources.MemoryMB,
		Kernel: spec.Template.Kernel, Initrd: spec.Initrd,
		Drive: drive(att), MAC: spec.Port.MAC,
		Tap: spec.Port.Tap, NetNS: spec.Port.Namespace, TapName: spec.Port.TapName,
		Memory: in.ram.memory,
		UID:    spec.UID, GID: spec.UID,
	}, nil
}

// kernel is a template's kernel in the form that the VMM boots.
func (r *Runtime) kernel(t runtime.Template) (string, error) {
	if !r.vmm.Capabilities().ELFKernel {
		return t.Kernel, nil
	}
	if t.KernelELF == "" {
		return "", fault.New(fault.FailedPrecondition, "boot", "template "+t.Digest, "it has no uncompressed kernel (vmlinux), and "+r.vmm.Name()+" boots no other").
			WithHint("restart roost, which makes it of the template's kernel, or build the template again")
	}
	return t.KernelELF, nil
}

// Adopt takes over a VM that runs since before the agent started.
func (r *Runtime) Adopt(ctx context.Context, spec runtime.Spec, record json.RawMessage) (runtime.Instance, error) {
	rec, err := parseInstance(record)
	if err != nil {
		return nil, err
	}
	served, lost := adoptPager(ctx, spec, rec)
	if lost != nil && !fault.Is(lost, fault.NotFound) {
		return nil, lost
	}
	vm, err := r.vmm.Adopt(ctx, rec.Handle) // which removes what is left of one that is gone
	if err != nil {
		served.leave()
		return nil, cmp.Or(lost, err)
	}
	if lost != nil {
		vm.Detach()
		return nil, lost
	}
	in := &instance{rt: r, vm: vm, identity: rec.Identity, vcpus: rec.VCPUs}
	if err := r.takeOver(ctx, in, spec, rec, served); err != nil {
		vm.Detach()
		served.leave()
		return nil, err
	}
	return in, nil
}

// takeOver finds disk and memory of an adopted VM.
func (r *Runtime) takeOver(ctx context.Context, in *instance, spec runtime.Spec, rec instanceRecord, served *pager) error {
	at, err := in.vm.WritesTo(ctx)
	if err != nil {
		return err
	}
	if err := r.findTop(ctx, &in.top, spec, rec, at); err != nil {
		return err
	}
	if _, err := r.disk.Attach(ctx, in.top.live); err != nil {
		return err
	}
	_ = in.top.letGo(ctx, r) // Stop tells
	if in.ram, err = r.takeBack(ctx, in.vm, rec, served); err != nil {
		return err
	}
	in.supervise()
	// Nobody knows how far an earlier agent came with what it put off.
	if layers := in.top.live.Stack.Layers; r.allocated(layers) > runtime.VerifyFirst {
		in.verifyLater(layers)
	}
	return nil
}

// Discard ends every process of the spec's uid and removes its live disk.
func (r *Runtime) Discard(ctx context.Context, spec runtime.Spec) error {
	if err := uids.Kill(ctx, spec.UID); err != nil {
		return err
	}
	return errors.Join(r.clean(ctx, spec), r.removeLive(ctx, spec))
}

// Reap ends every process of the spec's uid, and removes what they had on the host.
func (r *Runtime) Reap(ctx context.Context, spec runtime.Spec) error {
	if err := uids.Kill(ctx, spec.UID); err != nil {
		return err
	}
	return errors.Join(r.clean(ctx, spec), r.detachAll(ctx, spec))
}

// clean removes what the VMM of a spec's uid left, of which nothing runs any more.
func (r *Runtime) clean(ctx context.Context, spec runtime.Spec) error {
	c, ok := r.vmm.(vmm.Cleaner)
	if !ok || spec.UID == 0 || spec.RunDir == "" {
		return nil
	}
	return c.Clean(ctx, spec.RunDir)
}

// ConsoleOf reads the console that a VM left.
func (r *Runtime) ConsoleOf(spec runtime.Spec) ([]byte, error) {
	return r.vmm.ReadConsole(spec.RunDir)
}

// Files lists what a capture stands on.
func (r *Runtime) Files(c runtime.Capture) ([]string, error) {
	rec, err := parseCapture(c)
	if err != nil {
		return nil, err
	}
	return rec.files(), nil
}

// rollback runs the undo steps when the operation failed.
func rollback(ctx context.Context, undos *undo.Stack, err *error) {
	if *err != nil {
		*err = errors.Join(*err, undos.Rollback(ctx))
	}
}

func drive(att disk.Attachment) []vmm.Node {
	nodes := make([]vmm.Node, len(att.Nodes))
	for i, n := range att.Nodes {
		nodes[i] = vmm.Node(n)
	}
	return nodes
}

func diskBytes(r runtime.Resources) int64 { return int64(r.DiskSizeMB) << 20 }

func memoryBytes(mb int) int64 { return int64(mb) << 20 }

func parseInstance(record []byte) (instanceRecord, error) {
	var rec instanceRecord
	if err := json.Unmarshal(record, &rec); err != nil {
		return rec, fault.Wrap(err, "read", "instance record")
	}
	return rec, nil
}

// Trim gives back the memory of templates that no sandbox has used for as long.
func (r *Runtime) Trim(idle time.Duration) error {
	_, err := r.cache.Evict(idle)
	return err
}
