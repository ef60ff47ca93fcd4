package disktest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
)

func sealAndReopen(r *rig) {
	live := r.create()
	vm := r.run(live)
	r.put(vm, r.content, 5*mb, 3*mb)
	r.put(vm, r.content, diskSize-mb, mb)
	r.stop(vm, live)
	stack := r.seal(live)
	st, err := os.Stat(stack.Layers[0].Path)
	require.NoError(r, err)
	require.Equal(r, os.FileMode(0o400), st.Mode().Perm())
	r.same(r.content, r.read(stack))
	require.Equal(r, stack, r.seal(live), "a repeated seal gives the same layer")
	stack = r.layer(stack, func(vm VM) { r.put(vm, r.content, 6*mb+777*512, mb) })
	r.same(r.content, r.read(stack))
}

// sealOfPausedVM is a capture: the VM stands still when its disk is sealed, and is killed when
// the capture is published. The first capture fails, and the VM runs on.
func sealOfPausedVM(r *rig) {
	live := r.create()
	vm := r.run(live)
	r.put(vm, r.content, mb, mb)
	require.NoError(r, vm.Flush())
	r.seal(live)
	r.put(vm, r.content, 2*mb, mb)
	require.NoError(r, vm.Flush())
	stack := r.seal(live)
	check := r.unchanged(stack)
	vm.Kill()
	require.NoError(r, r.Detach(r.Context(), live))
	r.same(r.content, r.read(stack))
	check()
}

func diskInUseIsRefused(r *rig) {
	live := r.create()
	vm := r.run(live)
	r.put(vm, r.content, mb, mb)
	_, err := r.Grow(r.Context(), live, 2*diskSize)
	require.True(r, fault.Is(err, fault.FailedPrecondition), "%v", err)
	layer := disk.Layer{Path: live.Path, SizeBytes: live.SizeBytes}
	_, err = r.Merge(r.Context(), live.Stack, []disk.Layer{layer}, filepath.Join(r.dir, "merged"))
	require.True(r, fault.Is(err, fault.FailedPrecondition), "%v", err)
	_, err = r.Flatten(r.Context(), live.Stack.With(layer), filepath.Join(r.dir, "flat"))
	require.True(r, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.Equal(r, []string{live.Path}, r.files())
	r.put(vm, r.content, 2*mb, mb)
	r.stop(vm, live)
	r.same(r.content, r.read(r.seal(live)))
}

func failedSwitchLeavesTheDisk(r *rig) {
	r.needsLiveSeal()
	live := r.create()
	vm := r.run(live)
	r.put(vm, r.content, mb, mb)
	refusal := fault.New(fault.Unavailable, "switch", "VM", "it does not answer")
	_, next, err := r.Seal(r.Context(), live, r.nextIndex(), func(context.Context, disk.Attachment) error { return refusal })
	require.True(r, errors.Is(err, refusal), "%v", err)
	require.True(r, fault.Is(err, fault.Unavailable), "%v", err)
	require.Nil(r, next)
	require.Equal(r, []string{live.Path}, r.files())
	r.put(vm, r.content, mb+4096, mb)
	r.stop(vm, live)
	r.same(r.content, r.read(r.seal(live)))
}

func (r *rig) needsLiveSeal() {
	if !r.Capabilities().LiveSeal {
		r.Skipf("driver %s cannot seal under a running VM", r.Name())
	}
}

// sealUnderWrite holds a seal to its promise by writing one numbered block after another, each
// after the one before was acknowledged: a layer is then exactly the state after some number,
// no earlier than the last write acknowledged before the switch and no later than the last one
// begun when it returned.
func sealUnderWrite(r *rig) {
	r.needsLiveSeal()
	live := r.create()
	vm := r.run(live)
	w := newWriter(r, vm)
	var cuts [][2]int64
	var checks []func()
	for range 3 {
		w.waitFor(w.acknowledged() + 200)
		layer, next, err := r.Seal(r.Context(), live, r.nextIndex(), func(ctx context.Context, next disk.Attachment) error {
			before := w.acknowledged()
			err := vm.Switch(ctx, next)
			cuts = append(cuts, [2]int64{before, w.begun()})
			return err
		})
		require.NoError(r, err)
		require.NotNil(r, next)
		require.Equal(r, live.Stack.With(layer), next.Stack)
		require.NotEmpty(r, layer.Sum)
		require.NoError(r, r.Verify(r.Context(), layer))
		live = *next
		checks = append(checks, r.unchanged(live.Stack))
	}
	w.waitFor(w.acknowledged() + 200)
	last := w.end()
	r.stop(vm, live)
	for _, check := range checks {
		check()
	}
	for i, cut := range cuts {
		upTo := disk.Stack{Base: r.base, Layers: live.Stack.Layers[:i+1]}
		w.check(r.read(upTo), cut[0], cut[1])
	}
	w.check(r.read(r.seal(live)), last, last)
}

const (
	slots = 1024
	// stride scatters the slots over clusters and over their parts.
	stride = 36 * 1024
)

// writer writes block n to slot n modulo slots, for n = 1, 2, …
type writer struct {
	r       *rig
	mu      sync.Mutex
	moved   *sync.Cond
	started int64
	acked   int64
	ending  bool
	err     error
	done    chan struct{}
}

func newWriter(r *rig, vm VM) *writer {
	w := &writer{r: r, done: make(chan struct{})}
	w.moved = sync.NewCond(&w.mu)
	go w.loop(vm)
	return w
}

func (w *writer) loop(vm VM) {
	defer close(w.done)
	for n := w.begin(); n > 0; n = w.begin() {
		_, err := vm.WriteAt(numbered(n), n%slots*stride)
		w.acknowledge(n, err)
	}
}

// begin gives the next number; 0 ends the loop.
func (w *writer) begin() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ending || w.err != nil {
		return 0
	}
	w.started++
	return w.started
}

func (w *writer) acknowledge(n int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.acked = n
	}
	w.err = err
	w.moved.Broadcast()
}

func (w *writer) waitFor(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.acked < n && w.err == nil {
		w.moved.Wait()
	}
	require.NoError(w.r, w.err)
}

func (w *writer) acknowledged() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acked
}

func (w *writer) begun() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.started
}

// end stops the writer and returns the last number, which was acknowledged.
func (w *writer) end() int64 {
	w.mu.Lock()
	w.ending = true
	w.mu.Unlock()
	<-w.done
	require.NoError(w.r, w.err)
	return w.acked
}

// check finds the number that content is the state after, and that it lies within bounds.
func (w *writer) check(content []byte, least, most int64) {
	var cut int64
	for slot := range int64(slots) {
		cut = max(cut, numberIn(content, slot))
	}
	require.GreaterOrEqual(w.r, cut, least, "an acknowledged write is missing")
	require.LessOrEqual(w.r, cut, most, "a write after the switch is in the layer")
	for n := max(1, cut-slots+1); n <= cut; n++ {
		w.r.same(numbered(n), content[n%slots*stride:][:4096])
	}
}

// numbered is block n: its number, in every word.
func numbered(n int64) []byte {
	b := make([]byte, 0, 4096)
	for len(b) < 4096 {
		b = append(b, 'n', byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n), 'n', '\n')
	}
	return b
}

// numberIn reads a slot's number; 0 for what the base has there.
func numberIn(content []byte, slot int64) int64 {
	b := content[slot*stride:][:8]
	if b[0] != 'n' || b[6] != 'n' || b[7] != '\n' {
		return 0
	}
	return int64(b[1])<<32 | int64(b[2])<<24 | int64(b[3])<<16 | int64(b[4])<<8 | int64(b[5])
}
