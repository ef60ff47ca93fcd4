package microvm

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory/uffd"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
	"github.com/roosthq/roost/internal/host/vmm"
)

// workingSet is the file in a sandbox's directory of running things that tells in which order its
// last start but the first needed pages of its memory. It is advice for the next one, about the same
// guest, and lies beside no capture, since it is made when that is there already.
const workingSet = "working-set"

// pager is the page server of one VM, whichever process that is by now.
type pager struct {
	opts uffd.StartOptions

	mu  sync.Mutex
	now *uffd.Pager

	cancel context.CancelFunc
	done   chan struct{}
}

func pagerOptions(spec runtime.Spec, memoryMB int, m *ram) uffd.StartOptions {
	return uffd.StartOptions{
		Dir: spec.RunDir, UID: spec.UID, GID: spec.UID, Bytes: memoryBytes(memoryMB),
		Base: m.base, Map: m.origin.Map, Layers: m.origin.Layers,
		WorkingSet: filepath.Join(spec.RunDir, workingSet),
	}
}

func startPager(ctx context.Context, spec runtime.Spec, memoryMB int, m *ram) (*pager, error) {
	p := &pager{opts: pagerOptions(spec, memoryMB, m)}
	var err error
	p.now, err = uffd.Start(ctx, p.opts)
	if err != nil {
		return nil, memoryDamage(missing(err, "memory of the capture"))
	}
	return p, nil
}

// adoptPager takes over the page server of a VM that is about to be adopted, or attaches another where
// it died; nil is a VM that has none, or is gone. It comes before the VMM is asked anything: one that
// waits for a page itself answers nobody. One that the record does not tell of was attached by an
// agent that came to no more: it is ended.
func adoptPager(ctx context.Context, spec runtime.Spec, rec instanceRecord) (_ *pager, err error) {
	server := uffd.VMM{PID: rec.Handle.PID, StartTime: rec.Handle.StartTime}
	if rec.Origin == nil || isGoneVM(rec.Handle) {
		return nil, nil
	}
	p := &pager{opts: pagerOptions(spec, rec.Handle.MemoryMB, &ram{base: rec.MemoryBase, origin: rec.Origin})}
	known := map[int]bool{server.PID: true}
	if rec.Pager != nil {
		now, err := uffd.Adopt(*rec.Pager)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			p.now, known[rec.Pager.PID] = now, true
		}
	}
	if err := endOthers(ctx, spec.UID, known); err != nil {
		p.leave()
		return nil, err
	}
	if p.now != nil {
		return p, nil
	}
	if p.now, err = uffd.Reattach(ctx, p.opts, server); err == nil || ctx.Err() != nil {
		return p, err
	}
	// Its threads hang for ever.
	end := endProcess(ctx, server.PID, server.StartTime, spec.UID)
	return nil, &fault.Error{Kind: fault.NotFound, Op: "adopt", Object: "VM of sandbox " + spec.ID, Err: errors.Join(err, end)}
}

// isGoneVM tells whether the process of a VM has ended, as far as that can be told.
func isGoneVM(h vmm.Handle) bool {
	if h.BootID != process.BootID() || h.PID <= 0 || h.StartTime == 0 {
		return true
	}
	proc, err := process.Open(h.PID, h.StartTime)
	if err == nil {
		proc.Release()
	}
	return fault.Is(err, fault.NotFound)
}

func vmOf(vm vmm.VM) uffd.VMM {
	h := vm.Handle()
	return uffd.VMM{PID: h.PID, StartTime: h.StartTime}
}

// endOthers ends the processes of a uid that are not known.
func endOthers(ctx context.Context, uid int, known map[int]bool) error {
	if uid == 0 {
		return nil
	}
	all, err := uids.Block(uid).Processes()
	if err != nil {
		return err
	}
	for _, found := range all {
		if found.UID != uid || known[found.PID] {
			continue
		}
		if err := endProcess(ctx, found.PID, 0, uid); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// endProcess ends a process of a uid; start 0 is whoever has the pid.
func endProcess(ctx context.Context, pid int, start uint64, uid int) error {
	proc, err := process.Open(pid, start)
	if err != nil {
		return err
	}
	defer proc.Release()
	if owner, err := proc.UID(); err != nil || owner != uid {
		return err // the pid is another's by now
	}
	return proc.Kill(ctx)
}

func (p *pager) current() *uffd.Pager {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

// guard is a context that ends with the page server: who waits for a VM that waits for it would
// wait for ever.
func (p *pager) guard(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	exited := p.current().Exited()
	go func() {
		select {
		case <-exited:
			p.letTell(ctx)
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// letTell waits a moment where the page server ended because its VM did: who started that knows why.
func (p *pager) letTell(ctx context.Context) {
	const moment = 5 * time.Second
	if p.current().Err() != nil {
		return
	}
	select {
	case <-time.After(moment):
	case <-ctx.Done():
	}
}

// failure is why the page server ended, where it did and its VM with it; err else.
func (p *pager) failure(err error) error {
	select {
	case <-p.current().Exited():
		if why := p.current().Err(); why != nil {
			return memoryDamage(why)
		}
	default:
	}
	return err
}

// supervise attaches another page server whenever one dies. Where none can be, or memory is
// damaged, end is told why.
func (p *pager) supervise(vm uffd.VMM, end func(error)) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan struct{})
	replaced := func(next *uffd.Pager) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.now = next
	}
	go func() {
		defer close(p.done)
		// What it returns, end was told.
		_ = uffd.Supervise(ctx, p.current(), p.opts, vm, replaced, end)
	}()
}

func (p *pager) unsupervise() {
	if p.cancel != nil {
		p.cancel()
		<-p.done
	}
}

// stop ends the page server of a VM that is gone, and keeps what it learned.
func (p *pager) stop(ctx context.Context) error {
	p.unsupervise()
	// Advice: a start without it is slower.
	_ = uffd.SaveWorkingSet(p.opts.Dir, p.opts.WorkingSet)
	return p.current().Stop(ctx)
}

// leave lets go of the page server of a VM that lives on.
func (p *pager) leave() {
	if p == nil {
		return
	}
	p.unsupervise()
	if now := p.current(); now != nil {
		now.Detach()
	}
}
