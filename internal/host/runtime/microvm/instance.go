package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/memory/uffd"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
	"github.com/roosthq/roost/internal/undo"
)

// templateMemory is the whole memory of a template, in its capture.
const templateMemory = "memory"

// instance is one running VM with its disk and its share of the template's memory.
type instance struct {
	rt  *Runtime
	vm  vmm.VM
	top top
	// identity is of the VMM that was started, not of one installed since.
	identity vmm.Identity
	vcpus    int
	ram      *ram
	// template: ram is written by the VM itself and will be captured whole.
	template bool
	// change serialises Capture and Thaw.
	change sync.Mutex
	watch  watch
	// letGo serialises giving back disk and memory, which Stop and Detach both do.
	letGo sync.Mutex
}

var _ runtime.Instance = (*instance)(nil)

func (in *instance) Record() (json.RawMessage, error) {
	in.top.mu.Lock()
	defer in.top.mu.Unlock()
	return json.Marshal(instanceRecord{
		Identity: in.identity, Handle: in.vm.Handle(), Live: in.top.live, DiskIndex: in.top.index,
		MemoryBase: in.ram.base, MemoryID: in.ram.id, Origin: in.ram.origin, Pager: in.pagerHandle(), VCPUs: in.vcpus,
	})
}

// pagerHandle identifies the page server that there is by now.
func (in *instance) pagerHandle() *uffd.Handle {
	if in.ram.pager == nil {
		return nil
	}
	h := in.ram.pager.current().Handle()
	return &h
}

func (in *instance) Freeze(ctx context.Context) error { return in.vm.Pause(ctx) }

// Thaw lets the VM run, after a capture on a disk of its own.
func (in *instance) Thaw(ctx context.Context) error {
	in.change.Lock()
	defer in.change.Unlock()
	if why := in.condemned(); why != "" {
		return fault.New(fault.DataLoss, "thaw", "VM", why).WithHint(diskHint)
	}
	if err := in.goOn(ctx); err != nil {
		return fault.Wrap(err, "thaw", "captured disk")
	}
	if err := in.vm.Resume(ctx); err != nil {
		return err
	}
	in.top.mu.Lock()
	defer in.top.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, letGoTime)
	defer cancel()
	_ = in.top.letGo(ctx, in.rt) // it runs, whatever becomes of the disk that it had: Stop tells
	return nil
}

// letGoTime bounds how long a thaw waits for somebody who looks at a disk that the VM had: the
// guest's processes stand still meanwhile.
const letGoTime = 2 * time.Second

func (in *instance) Exited() <-chan struct{}  { return in.vm.Exited() }
func (in *instance) Console() ([]byte, error) { return in.vm.Console() }

func (in *instance) Exit() runtime.Exit {
	e := in.vm.Exit()
	if why := in.condemned(); why != "" {
		return runtime.Exit{Reason: why, At: e.At}
	}
	return runtime.Exit{Reason: e.Reason, Requested: e.Requested, At: e.At}
}

// Stop kills the VMM, then its page server, and lets go of the disk and the memory. In that order:
// a mapping is never removed under a VMM that may still write. What failed is tried again by the
// next Stop.
func (in *instance) Stop(ctx context.Context) error {
	if err := in.vm.Kill(ctx); err != nil {
		return err
	}
	in.endWatch()
	in.letGo.Lock()
	defer in.letGo.Unlock()
	in.top.mu.Lock()
	defer in.top.mu.Unlock()
	return errors.Join(in.rt.dropNext(ctx, &in.top), in.detach(ctx), in.ram.release(ctx))
}

// detach lets go of the disk. Where that fails, the base stays attached with it: whatever was to
// replace or remove it would do so under a mapping.
func (in *instance) detach(ctx context.Context) error {
	err := failpoint.Hit("microvm.stop.detach")
	if err == nil {
		err = errors.Join(in.top.letGo(ctx, in.rt), in.rt.disk.Detach(ctx, in.top.live))
	}
	return fault.Wrap(err, "let go of", "disk "+in.top.live.Path)
}

func (in *instance) Detach() {
	in.endWatch()
	in.vm.Detach()
	in.letGo.Lock()
	defer in.letGo.Unlock()
	in.ram.leave()
}

func (in *instance) Usage() (runtime.Usage, error) {
	m, err := in.vm.Mapping()
	if err != nil {
		return runtime.Usage{}, err
	}
	ram, err := memory.Usage(m.PID, m.Addr, m.Bytes)
	if err != nil {
		return runtime.Usage{}, err
	}
	blocks, err := in.rt.disk.Usage(in.top.disk().Path)
	return runtime.Usage{MemoryBytes: ram, DiskBytes: blocks}, err
}

// Capture saves device state, memory and the disk's layer, each synced, and names them; or the
// layer alone.
func (in *instance) Capture(ctx context.Context, dir string, opts runtime.CaptureOptions) (json.RawMessage, runtime.CaptureStats, error) {
	in.change.Lock()
	defer in.change.Unlock()
	before := in.top.sealedNow()
	raw, stats, err := in.capture(ctx, dir, opts)
	if err != nil && !before && in.top.sealedNow() {
		ctx, cancel := undo.Context(ctx)
		defer cancel()
		err = errors.Join(err, in.reopen(ctx))
	}
	return raw, stats, err
}

// step is one part of a capture; it returns the bytes that it wrote.
type step struct {
	name string
	run  func() (int64, error)
}

func (in *instance) capture(ctx context.Context, dir string, opts runtime.CaptureOptions) (json.RawMessage, runtime.CaptureStats, error) {
	var stats runtime.CaptureStats
	rec := captureRecord{
		Identity: in.identity, VCPUs: in.vcpus, MemoryMB: in.vm.Handle().MemoryMB,
		DiskOnly: opts.DiskOnly, DiskBytes: in.top.disk().SizeBytes,
	}
	saveDisk := step{"disk", func() (n int64, err error) {
		rec.Disk, err = in.seal(ctx, in.template && !opts.DiskOnly)
		return 0, err
	}}
	steps := []step{saveDisk}
	if !opts.DiskOnly {
		rec.State, rec.MemoryBase = filepath.Join(dir, paths.DeviceState), in.ram.base
		saveState := step{"state", func() (int64, error) { return in.saveState(ctx, &rec) }}
		// Memory last: a template's ends the VM.
		saveMemory := step{"memory", func() (int64, error) { return in.saveMemory(ctx, dir, opts, &rec, &stats) }}
		steps = []step{saveState, saveDisk, saveMemory}
	}
	for _, step := range steps {
		began := time.Now()
		n, err := step.run()
		if err != nil {
			return nil, stats, fault.Wrap(err, "save", step.name)
		}
		stats.BytesWritten += n
		stats.Phases = append(stats.Phases, runtime.Phase{Name: step.name, Duration: time.Since(began)})
	}
	raw, err := json.Marshal(rec.relativeTo(dir))
	return raw, stats, err
}

func (in *instance) saveState(ctx context.Context, rec *captureRecord) (int64, error) {
	f, err := os.OpenFile(rec.State, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := in.vm.SaveState(ctx, f); err != nil {
		return 0, err
	}
	raw, err := os.ReadFile(rec.State)
	if err != nil {
		return 0, err
	}
	rec.StateSum = stateSum(raw)
	return int64(len(raw)), f.Sync()
}

// saveMemory writes a template's memory whole, a sandbox's as pages that changed.
func (in *instance) saveMemory(ctx context.Context, dir string, opts runtime.CaptureOptions, rec *captureRecord, stats *runtime.CaptureStats) (int64, error) {
	if in.template {
		return in.saveTemplate(ctx, dir, rec)
	}
	savePages := in.savePages
	if in.rt.vmm.Capabilities().OwnMemory {
		savePages = in.saveWritten
	}
	saved, layers, cost, err := savePages(ctx, dir, opts.Parent)
	if err != nil {
		return 0, err
	}
	rec.Layers = append(layers, filepath.Join(dir, saved.LayerName(saved.Layers()-1)))
	rec.MemoryMap = filepath.Join(dir, paths.MemoryMap)
	stats.PrivatePages, stats.ZeroPages = int64(cost.Private), int64(cost.Zero)
	if err := memory.WriteMap(rec.MemoryMap, saved); err != nil {
		return 0, err
	}
	written, err := os.Stat(rec.MemoryMap)
	if err != nil {
		return 0, err
	}
	return cost.Bytes + written.Size(), nil
}

// savePages writes the VM's own pages: those that differ from the parent, or all.
func (in *instance) savePages(ctx context.Context, dir string, parent *runtime.Capture) (*memory.Map, []string, memory.Stats, error) {
	at, err := in.vm.Mapping()
	if err != nil {
		return nil, nil, memory.Stats{}, err
	}
	before, layers := parentMap(parent)
	saved, cost, err := memory.CaptureFile(ctx, in.ram.mapping(at), before, dir, true)
	return saved, layers, cost, err
}

// saveTemplate ends the VM, since memory that a process still maps for writing cannot be
// sealed, and keeps all of it.
func (in *instance) saveTemplate(ctx context.Context, dir string, rec *captureRecord) (int64, error) {
	rec.MemoryBase = filepath.Join(dir, templateMemory)
	if in.rt.vmm.Capabilities().OwnMemory {
		return in.saveOwnTemplate(ctx, rec.MemoryBase)
	}
	if err := in.vm.Kill(ctx); err != nil {
		return 0, err
	}
	if err := memory.Seal(in.ram.memory.File); err != nil {
		return 0, err
	}
	info, err := memory.Save(ctx, in.ram.memory.File, rec.MemoryBase)
	return info.Used, err
}

// parentMap is what the last pause saved. With MaxLayers of it the next capture starts afresh:
// everything private is written once, and the old layers are no longer needed. That is the merge
// when nobody had the time for it before (Compact). So it does when the last one cannot be read:
// a damaged capture must not keep the sandbox from a whole one.
func parentMap(parent *runtime.Capture) (*memory.Map, []string) {
	if parent == nil {
		return nil, nil
	}
	rec, err := parseCapture(*parent)
	if err != nil || rec.MemoryMap == "" || len(rec.Layers) >= memory.MaxLayers {
		return nil, nil
	}
	saved, err := memory.ReadMap(rec.MemoryMap)
	if err != nil {
		return nil, nil
	}
	return saved, rec.Layers
}

// Stopped implements runtime.Instance.
func (in *instance) Stopped() string { return in.vm.Stopped() }
