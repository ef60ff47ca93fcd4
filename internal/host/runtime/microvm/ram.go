package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
)

// ram is what lies under a VM's memory: a memfd, or, where the VMM makes its own
// (vmm.Capabilities.OwnMemory, own.go), what it was restored from.
type ram struct {
	// memory is how the VMM is given it.
	memory vmm.Memory
	// base is the path of the template's memory; "" for zeros.
	base string
	// id identifies the content, so that saved pages never meet another template's memory.
	id memory.Hash
	// origin is what lies over the base where the VMM makes its own memory; nil is nothing.
	origin *origin
	// pager serves both; nil where there is no origin.
	pager *pager
	drop  func() error
}

// release lets go of the memory; the VM must be gone. Idempotent.
func (m *ram) release(ctx context.Context) error {
	if m.pager != nil {
		if err := m.pager.stop(ctx); err != nil {
			return err
		}
	}
	return m.let()
}

// serve runs a restore for as long as its memory is served.
func (m *ram) serve(ctx context.Context, restore func(context.Context) (vmm.VM, error)) (vmm.VM, error) {
	if m.pager == nil {
		return restore(ctx)
	}
	ctx, cancel := m.pager.guard(ctx)
	defer cancel()
	vm, err := restore(ctx)
	if err != nil {
		return nil, m.pager.failure(err)
	}
	return vm, nil
}

// leave lets go of the memory of a VM that lives on.
func (m *ram) leave() {
	if m.pager != nil {
		m.pager.leave()
	}
	_ = m.let()
}

func (m *ram) let() error {
	drop := m.drop
	m.drop = nil
	if drop == nil {
		return nil
	}
	return drop()
}

// mapping is the VM's memory with the identity of what lies under it.
func (m *ram) mapping(at vmm.Mapping) memory.Mapping {
	return memory.Mapping{PID: at.PID, Addr: at.Addr, Bytes: at.Bytes, Template: m.id}
}

// bootMemory is zeros: written in place by a template's VM, privately by any other.
func (r *Runtime) bootMemory(memoryMB int, template bool) (*ram, error) {
	if r.vmm.Capabilities().OwnMemory {
		return &ram{}, nil
	}
	return zeros(memoryMB, template)
}

func zeros(memoryMB int, template bool) (*ram, error) {
	f, err := memory.NewTemplate("roost-ram", memoryBytes(memoryMB))
	if err != nil {
		return nil, err
	}
	if !template {
		if err := memory.Seal(f); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return &ram{memory: vmm.Memory{File: f, Shared: template}, drop: f.Close}, nil
}

// savedMemory is what a capture's VM is restored with.
func (r *Runtime) savedMemory(ctx context.Context, spec runtime.Spec, rec captureRecord) (*ram, error) {
	if r.vmm.Capabilities().OwnMemory {
		return ownMemory(ctx, spec, rec)
	}
	return r.baseMemory(ctx, rec.MemoryBase, rec.MemoryMB)
}

// baseMemory is what a capture's pages differ from.
func (r *Runtime) baseMemory(ctx context.Context, path string, memoryMB int) (*ram, error) {
	if path == "" {
		return zeros(memoryMB, false)
	}
	base, err := sharedRAM(path)(r.cache.Get(ctx, path, memoryBytes(memoryMB)))
	return base, missing(err, "template memory "+path)
}

// takeBack shares the template memory that an adopted VM already holds, so that it is not
// loaded a second time.
func (r *Runtime) takeBack(ctx context.Context, vm vmm.VM, rec instanceRecord, served *pager) (*ram, error) {
	if r.vmm.Capabilities().OwnMemory {
		return takeBackOwn(rec, served)
	}
	f, err := vm.MemoryFile()
	if err != nil {
		return nil, err
	}
	if rec.MemoryBase == "" {
		return &ram{memory: vmm.Memory{File: f}, drop: f.Close}, nil
	}
	return sharedRAM(rec.MemoryBase)(r.cache.Put(ctx, rec.MemoryBase, memoryBytes(rec.Handle.MemoryMB), f))
}

// sharedRAM wraps a hold on the cache.
func sharedRAM(path string) func(*memory.Template, error) (*ram, error) {
	return func(t *memory.Template, err error) (*ram, error) {
		if err != nil {
			return nil, err
		}
		return &ram{memory: vmm.Memory{File: t.File}, base: path, id: t.Info.ID, drop: func() error {
			t.Release()
			return nil
		}}, nil
	}
}

// applyPages writes a capture's pages over the template's, before the VM runs.
func applyPages(ctx context.Context, rec captureRecord, m memory.Mapping) error {
	if rec.MemoryMap == "" {
		return nil
	}
	saved, layers, err := openPages(rec)
	if err != nil {
		return err
	}
	_, err = memory.Apply(ctx, m, saved, layers.Readers())
	return errors.Join(err, layers.Close())
}

// openPages opens a capture's map and the layers that it names.
func openPages(rec captureRecord) (*memory.Map, *memory.Layers, error) {
	saved, err := memory.ReadMap(rec.MemoryMap)
	if err != nil {
		return nil, nil, missing(err, "memory map "+rec.MemoryMap)
	}
	layers, err := memory.OpenLayers(saved, rec.Layers)
	return saved, layers, fault.Wrap(err, "open memory of", rec.MemoryMap)
}

// maxState is more than any VMM says of its devices.
const maxState = 64 << 20

// openState opens saved device state once its checksum holds.
func openState(path, sum string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(fault.Wrap(err, "open", "device state"), "device state "+path)
	}
	h := xxh3.New128()
	if _, err := io.Copy(h, io.LimitReader(f, maxState)); err != nil {
		return nil, errors.Join(damaged("device state "+path, err.Error()), f.Close())
	}
	if have := sumText(h.Sum128()); have != sum {
		return nil, errors.Join(damaged("device state "+path, fmt.Sprintf("checksum is %s, not %s", have, sum)), f.Close())
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, fault.Wrap(err, "read", "device state "+path)
}

func stateSum(raw []byte) string { return sumText(xxh3.Hash128(raw)) }

func sumText(h memory.Hash) string { return fmt.Sprintf("%016x%016x", h.Hi, h.Lo) }
