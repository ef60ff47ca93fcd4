package microvm

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/runtime"
)

// This file is for VMMs that make their memory themselves and keep count of what the guest writes
// (vmm.Capabilities.OwnMemory). A template's VM is restored from the file of its memory; what lies
// over that comes from a page server (pager.go). What is saved is what was written since the VM was
// started, over what it was started from, however often it is saved.

// origin is what a VM was restored from, over the memory of its template: a map and its layers.
type origin struct {
	Map    string   `json:"map"`
	Layers []string `json:"layers"`
}

// ownMemory is what a VM is restored with. All of a template's memory is verified, once a file;
// of the layers as much as of a disk before its guest runs. The page server checks each page.
func ownMemory(ctx context.Context, spec runtime.Spec, rec captureRecord) (*ram, error) {
	m, err := ownBase(ctx, rec)
	if err != nil {
		return nil, err
	}
	if rec.MemoryMap == "" {
		if m.memory.Path = rec.MemoryBase; m.memory.Path == "" {
			return nil, damaged("memory of the capture", "it names none")
		}
		return m, nil
	}
	m.origin = &origin{Map: rec.MemoryMap, Layers: rec.Layers}
	if err := m.origin.verify(ctx); err != nil {
		return nil, err
	}
	if m.pager, err = startPager(ctx, spec, rec.MemoryMB, m); err != nil {
		return nil, err
	}
	m.memory.Pager = m.pager.current().Handle().Socket()
	return m, nil
}

// ownBase is the template's memory, whole.
func ownBase(ctx context.Context, rec captureRecord) (*ram, error) {
	if rec.MemoryBase == "" {
		return &ram{}, nil
	}
	info, err := memory.Verify(ctx, rec.MemoryBase, memoryBytes(rec.MemoryMB))
	if err != nil {
		return nil, missing(err, "template memory "+rec.MemoryBase)
	}
	return &ram{base: rec.MemoryBase, id: info.ID}, nil
}

func (o *origin) open() (*memory.Map, *memory.Layers, error) {
	return openPages(captureRecord{MemoryMap: o.Map, Layers: o.Layers})
}

// verify reads the layers, unless they are too large to wait for.
func (o *origin) verify(ctx context.Context) error {
	saved, layers, err := o.open()
	if err != nil {
		return err
	}
	var total int64
	for i := range saved.Layers() {
		total += saved.LayerBytes(i)
	}
	if total <= runtime.VerifyFirst {
		err = fault.Wrap(saved.Verify(ctx, layers), "verify memory of", o.Map)
	}
	return memoryDamage(errors.Join(err, layers.Close()))
}

// memoryDamage says what still works when memory is damaged.
func memoryDamage(err error) error {
	if fault.Is(err, fault.DataLoss) && fault.HintOf(err) == "" {
		return &fault.Error{Kind: fault.DataLoss, Op: "use", Object: "memory of the capture", Err: err, Hint: memoryHint}
	}
	return err
}

// takeBackOwn is ownMemory of an adopted VM: it runs, so what it reads was verified, or its page
// server checks it. Only who the base is must be known: what it was when the VM was started, which has
// it mapped still where another lies by that name now.
func takeBackOwn(rec instanceRecord, served *pager) (*ram, error) {
	m := &ram{base: rec.MemoryBase, id: rec.MemoryID, origin: rec.Origin, pager: served}
	if m.base == "" || m.id != (memory.Hash{}) {
		return m, nil
	}
	info, err := memory.ReadInfo(m.base, memoryBytes(rec.Handle.MemoryMB))
	m.id = info.ID
	return m, err
}

// saveWritten writes what the guest wrote that differs from what the VM was restored from. parent
// tells whether that is the sandbox's own, whose files may be named where they lie; else they are
// linked into dir.
func (in *instance) saveWritten(ctx context.Context, dir string, parent *runtime.Capture) (_ *memory.Map, _ []string, cost memory.Stats, err error) {
	dirty, err := in.vm.Dirty(ctx)
	if err != nil {
		return nil, nil, cost, err
	}
	defer dirty.Close()
	before, layers, err := in.ram.before(ctx, dir, parent)
	if err != nil {
		return nil, nil, cost, err
	}
	saved, cost, err := memory.CaptureDirty(ctx, dirty, in.ram.id, before, dir, true)
	return saved, layers, cost, err
}

// before is what the VM was restored from, with room for a layer more.
func (m *ram) before(ctx context.Context, dir string, parent *runtime.Capture) (*memory.Map, []string, error) {
	switch {
	case m.origin == nil:
		return nil, nil, nil
	case len(m.origin.Layers) >= memory.MaxLayers:
		return m.origin.merge(ctx, dir)
	}
	saved, err := memory.ReadMap(m.origin.Map)
	if err != nil {
		return nil, nil, memoryDamage(missing(err, "memory map "+m.origin.Map))
	}
	if m.origin.isOf(parent) {
		return saved, append([]string(nil), m.origin.Layers...), nil
	}
	layers, err := linkLayers(m.origin.Layers, dir)
	return saved, layers, err
}

// merge makes one layer of all, in dir.
func (o *origin) merge(ctx context.Context, dir string) (*memory.Map, []string, error) {
	saved, layers, err := o.open()
	if err != nil {
		return nil, nil, memoryDamage(err)
	}
	merged, _, err := memory.Merge(ctx, saved, layers.Readers(), dir)
	if err := errors.Join(err, layers.Close()); err != nil {
		return nil, nil, memoryDamage(err)
	}
	return merged, []string{filepath.Join(dir, merged.LayerName(0))}, nil
}

// isOf tells whether a capture has the same layers.
func (o *origin) isOf(c *runtime.Capture) bool {
	if c == nil {
		return false
	}
	rec, err := parseCapture(*c)
	if err != nil || len(rec.Layers) != len(o.Layers) {
		return false
	}
	for i, path := range o.Layers {
		if !sameFile(path, rec.Layers[i]) {
			return false
		}
	}
	return true
}

// linkLayers gives layers names in dir, under which they are known by their content. Of a capture
// that fails its directory is removed.
func linkLayers(layers []string, dir string) ([]string, error) {
	out := make([]string, len(layers))
	for i, path := range layers {
		name := memory.LayerNameIn(filepath.Base(path))
		if name == "" {
			name = filepath.Base(path)
		}
		out[i] = filepath.Join(dir, name)
		err := os.Link(path, out[i])
		if err != nil && (!errors.Is(err, os.ErrExist) || !sameFile(path, out[i]) && !sameLayer(path, out[i])) {
			return nil, linkError(err, path)
		}
	}
	return out, nil
}

// sameLayer tells whether two files are called after the same content: a sandbox that wrote nothing
// twice has an empty layer of each.
func sameLayer(a, b string) bool {
	name := memory.LayerNameIn(filepath.Base(a))
	return name != "" && name == memory.LayerNameIn(filepath.Base(b))
}

// saveOwnTemplate ends the VM, as that of any template, and keeps what it wrote, which is all that
// is not zero. The file is mapped by VMs under their own uids: they may read it.
func (in *instance) saveOwnTemplate(ctx context.Context, to string) (int64, error) {
	written, err := in.vm.Dirty(ctx)
	if err != nil {
		return 0, err
	}
	defer written.Close()
	if err := in.vm.Kill(ctx); err != nil {
		return 0, err
	}
	info, err := memory.SaveFrom(ctx, written, to)
	if err != nil {
		return 0, err
	}
	return info.Used, fault.Wrap(os.Chmod(to, 0o444), "open to VMs", to)
}
