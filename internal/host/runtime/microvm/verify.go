package microvm

import (
	"context"
	"errors"
	"sync"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// check is the verification of the layers that a start stands on. Few bytes are read beside the
// other work of the start, which waits for the verdict before the guest runs; of many the verdict
// comes while it runs (watch).
type check struct {
	r      *Runtime
	layers []disk.Layer
	// later: they are too many to wait for.
	later  bool
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done
}

// verify begins to verify layers.
func (r *Runtime) verify(ctx context.Context, layers []disk.Layer) *check {
	c := &check{r: r, layers: layers, later: r.allocated(layers) > runtime.VerifyFirst, done: make(chan struct{})}
	ctx, c.cancel = context.WithCancel(ctx)
	if c.later {
		close(c.done)
		return c
	}
	go func() {
		defer close(c.done)
		c.err = r.verifyAll(ctx, layers)
	}()
	return c
}

// wait is for the verdict, as far as it comes before the guest runs.
func (c *check) wait() error {
	<-c.done
	return c.err
}

// end ends the check with its start. Where that failed and a layer is damaged, the damage is why:
// of a damaged header, say, the disk driver only knows that it is none of its own.
func (c *check) end(ctx context.Context, err *error) {
	defer func() {
		c.cancel()
		<-c.done
	}()
	if *err == nil || ctx.Err() != nil {
		return
	}
	damage := c.wait()
	if c.later && suspicious(*err) {
		damage = c.r.verifyAll(ctx, c.layers)
	}
	if fault.Is(damage, fault.DataLoss) {
		*err = damage
	}
}

func suspicious(err error) bool {
	return fault.Is(err, fault.FailedPrecondition) || fault.Is(err, fault.NotFound)
}

func (r *Runtime) verifyAll(ctx context.Context, layers []disk.Layer) error {
	for _, l := range layers {
		if err := r.disk.Verify(ctx, l); err != nil {
			return diskDamage(err)
		}
	}
	return nil
}

// diskDamage says what is left to do when a layer is damaged.
func diskDamage(err error) error {
	if !fault.Is(err, fault.DataLoss) {
		return err
	}
	return &fault.Error{Kind: fault.DataLoss, Op: "use", Object: "disk of the capture", Err: err, Hint: diskHint}
}

// allocated is what verifying the layers will read. One that cannot be looked at is small: Verify
// says what is wrong with it.
func (r *Runtime) allocated(layers []disk.Layer) int64 {
	var total int64
	for _, l := range layers {
		if l.Sum == "" {
			continue
		}
		if n, err := r.disk.Usage(l.Path); err == nil {
			total += n
		}
	}
	return total
}

// watch verifies the layers of a VM that runs already, and ends it when one is damaged.
type watch struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	reason string
}

// started goes on with a check that was put off until the VM is there.
func (in *instance) started(c *check) {
	in.supervise()
	if c.later {
		in.verifyLater(c.layers)
	}
}

// verifyLater begins the watch over layers whose check was put off. One VM's at a time is read:
// the host's disk is the guests' too.
func (in *instance) verifyLater(layers []disk.Layer) {
	ctx, cancel := context.WithCancel(context.Background())
	in.watch.cancel = cancel
	in.watch.done.Go(func() {
		select {
		case <-in.vm.Exited():
			cancel()
		case <-ctx.Done():
		}
	})
	in.watch.done.Go(func() {
		defer cancel()
		select {
		case in.rt.watching <- struct{}{}:
			defer func() { <-in.rt.watching }()
		case <-ctx.Done():
			return
		}
		if err := in.rt.verifyAll(ctx, layers); fault.Is(err, fault.DataLoss) {
			in.condemn(err)
		}
	})
}

// supervise ends the VM when its memory cannot be served any more. It hangs then: it cannot be
// frozen.
func (in *instance) supervise() {
	if in.ram.pager == nil {
		return
	}
	in.ram.pager.supervise(vmOf(in.vm), func(err error) {
		in.because(err)
		ctx, cancel := undo.Context(context.Background())
		defer cancel()
		_ = in.vm.Kill(ctx) // see condemn
	})
}

// because is why the VM is ended.
func (in *instance) because(err error) {
	in.watch.mu.Lock()
	defer in.watch.mu.Unlock()
	if in.watch.reason == "" {
		in.watch.reason = fault.Message(err)
	}
}

// condemn freezes a VM that reads damaged data, so that nobody is served any more of it, and ends
// it.
func (in *instance) condemn(damage error) {
	in.because(damage)
	ctx, cancel := undo.Context(context.Background())
	defer cancel()
	// Where neither works its process cannot be reached at all; it is gone, or about to be.
	_ = errors.Join(in.vm.Pause(ctx), in.vm.Kill(ctx))
}

// condemned is why the VM was ended; "" is a VM that was not.
func (in *instance) condemned() string {
	in.watch.mu.Lock()
	defer in.watch.mu.Unlock()
	return in.watch.reason
}

// endWatch ends the watch, if there is one.
func (in *instance) endWatch() {
	if in.watch.cancel != nil {
		in.watch.cancel()
	}
	in.watch.done.Wait()
}
