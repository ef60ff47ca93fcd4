package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/runtime"
)

// tops is how far apart the indices of one start's disks are: its first live disk has the
// spec's, the one that it goes on with after a capture tops more. No sandbox starts so often.
const tops = 1 << 20

// top is the writable end of an instance's disk. A capture makes the live disk a layer, on
// which others may stand from then on, so a VM that runs on gets a new live disk first. The
// capture makes that one too, where it may fail: the Thaw that needs it needs no space.
type top struct {
	mu    sync.Mutex
	live  disk.Live
	index int
	// sealed: a capture has the live disk. Its mode says so as well, for who adopts the VM.
	sealed bool
	// next is the disk to go on with, and its stack that of the capture; nil when not made yet.
	next *disk.Live
	// held are disks that the VM went on from and that could not be let go of: Stop does it.
	held []disk.Live
}

// letGo detaches the disks that the VM does not use any more. What fails is kept for the next time:
// while the VM runs it is no reason to end it.
func (t *top) letGo(ctx context.Context, r *Runtime) error {
	var errs []error
	var left []disk.Live
	for _, live := range t.held {
		if err := r.disk.Detach(ctx, live); err != nil {
			errs, left = append(errs, err), append(left, live)
		}
	}
	t.held = left
	return errors.Join(errs...)
}

func (t *top) disk() disk.Live {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live
}

// seal makes the live disk a layer and returns the stack up to it. last: the VM will not run on.
func (in *instance) seal(ctx context.Context, last bool) (disk.Stack, error) {
	t := &in.top
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != nil { // captured before, and frozen since
		return t.next.Stack, nil
	}
	if err := in.rt.sumOwn(ctx, t.live); err != nil {
		return disk.Stack{}, err
	}
	layer, _, err := in.rt.disk.Seal(ctx, t.live, 0, nil)
	if err != nil {
		return disk.Stack{}, err
	}
	stack := t.live.Stack.With(layer)
	if !last {
		err = in.rt.prepareNext(ctx, t, layer)
	}
	if err != nil {
		return disk.Stack{}, errors.Join(err, in.rt.unseal(ctx, t))
	}
	t.sealed = true
	if t.next != nil {
		stack = t.next.Stack
	}
	return stack, nil
}

// sumOwn gives sums to the layers of the disk's own directory that have none: an adopted VM's
// disk stands on what an earlier agent sealed, and told nobody the sum of.
func (r *Runtime) sumOwn(ctx context.Context, live disk.Live) error {
	for i, l := range live.Stack.Layers {
		if l.Sum != "" || filepath.Dir(l.Path) != filepath.Dir(live.Path) {
			continue
		}
		sealed, _, err := r.disk.Seal(ctx, disk.Live{Path: l.Path, SizeBytes: l.SizeBytes}, 0, nil)
		if err != nil {
			return err
		}
		live.Stack.Layers[i] = sealed
	}
	return nil
}

// sealedNow tells whether a capture has the live disk.
func (t *top) sealedNow() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sealed
}

// prepareNext makes the disk to go on with over layer, which is t.live sealed. What lies below
// is merged first when it is as deep as it may be.
func (r *Runtime) prepareNext(ctx context.Context, t *top, layer disk.Layer) (err error) {
	dir, index, below := filepath.Dir(t.live.Path), t.index+tops, t.live.Stack
	if len(below.Layers)+1 >= disk.MaxDepth {
		if below, err = r.shallow(ctx, below, dir, index); err != nil {
			return err
		}
	}
	next, err := r.disk.Open(ctx, below.With(layer), t.live.SizeBytes, dir, index)
	if err == nil {
		t.next = &next
	}
	return err
}

// reopen takes back the sealing of a capture that failed.
func (in *instance) reopen(ctx context.Context) error {
	in.top.mu.Lock()
	defer in.top.mu.Unlock()
	return in.rt.unseal(ctx, &in.top)
}

func (r *Runtime) unseal(ctx context.Context, t *top) error {
	if err := r.dropNext(ctx, t); err != nil {
		return err
	}
	if err := os.Chmod(t.live.Path, 0o600); err != nil {
		return fault.Wrap(err, "reopen", "disk "+t.live.Path)
	}
	t.sealed = false
	return nil
}

func (r *Runtime) dropNext(ctx context.Context, t *top) error {
	if t.next == nil {
		return nil
	}
	if err := r.disk.RemoveLive(ctx, *t.next); err != nil {
		return err
	}
	t.next = nil
	return nil
}

// goOn makes the VM write to the next disk where a capture has the one that it has.
func (in *instance) goOn(ctx context.Context) error {
	t := &in.top
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.sealed {
		return nil
	}
	if t.next == nil {
		layer, _, err := in.rt.disk.Seal(ctx, t.live, 0, nil) // once more, for its sum
		if err != nil {
			return err
		}
		if err := in.rt.prepareNext(ctx, t, layer); err != nil {
			return err
		}
	}
	att, err := in.rt.disk.Attach(ctx, *t.next)
	if err != nil {
		return err
	}
	if err := in.vm.SwitchDisk(ctx, drive(att)); err != nil {
		return err
	}
	t.held = append(t.held, t.live)
	t.live, t.index, t.sealed, t.next = *t.next, t.index+tops, false, nil
	return nil
}

// findTop is the disk that an adopted VM writes to, which a record written before a capture
// does not name: at is its file, by what the VMM says. That is believed only of a disk of this
// start with nothing but the next one over it: that one is made anew, and a capture's would be
// lost. The mode tells what a capture has. The VM uses none of the other disks of its start.
func (r *Runtime) findTop(ctx context.Context, t *top, spec runtime.Spec, rec instanceRecord, at os.FileInfo) error {
	index := firstIndex(r, spec, rec)
	chain := r.chain(rec.Live, index)
	i, err := r.holder(ctx, chain, at)
	if err != nil {
		return err
	}
	if i < 0 {
		return fault.New(fault.FailedPrecondition, "find", "disk "+rec.Live.Path, "the VM writes to another one")
	}
	for _, above := range chain[i+1:] {
		sealed, err := isSealed(above.Path)
		if err != nil {
			return err
		}
		if sealed {
			return fault.New(fault.FailedPrecondition, "find", "disk "+chain[i].Path,
				"the VM writes to it, and a capture stands on one above it")
		}
	}
	t.live, t.index = chain[i], index+i*tops
	t.held = slices.Delete(slices.Clone(chain), i, i+1)
	t.sealed, err = isSealed(t.live.Path)
	return err
}

// holder is which of the disks is what a VM writes to; -1 is none.
func (r *Runtime) holder(ctx context.Context, disks []disk.Live, at os.FileInfo) (int, error) {
	for i, live := range disks {
		held, err := r.disk.Holds(ctx, live, at)
		if err != nil {
			return -1, err
		}
		if held {
			return i, nil
		}
	}
	return -1, nil
}

// firstIndex is the index of the disk that a record names.
func firstIndex(r *Runtime, spec runtime.Spec, rec instanceRecord) int {
	if r.disk.LivePath(filepath.Dir(rec.Live.Path), rec.DiskIndex) != rec.Live.Path {
		return spec.DiskIndex // the record is of a version that had no others
	}
	return rec.DiskIndex
}

// chain lists the disks of one start that exist, from live on: each stands on those before it.
func (r *Runtime) chain(live disk.Live, index int) []disk.Live {
	var out []disk.Live
	dir := filepath.Dir(live.Path)
	for fileExists(live.Path) {
		out = append(out, live)
		index += tops
		layer := disk.Layer{Path: live.Path, SizeBytes: live.SizeBytes}
		below := shallowed(live.Stack, dir, index)
		live = disk.Live{Stack: below.With(layer), Path: r.disk.LivePath(dir, index), SizeBytes: live.SizeBytes}
	}
	return out
}

// shallowed is what prepareNext made of a stack for the disk of that index. A device stands on the
// merged file, not on the layers that it was made of.
func shallowed(stack disk.Stack, dir string, index int) disk.Stack {
	path := mergedPath(dir, index)
	if len(stack.Layers)+1 < disk.MaxDepth || !fileExists(path) {
		return stack
	}
	below := disk.Stack{Base: stack.Base, Layers: stack.Layers[:sharedLayers(stack, dir)]}
	return below.With(disk.Layer{Path: path, SizeBytes: stack.SizeBytes()})
}

// isSealed tells a layer from a live disk.
func isSealed(path string) (bool, error) {
	st, err := os.Stat(path)
	if err != nil {
		return false, fault.Wrap(err, "look at", "disk "+path)
	}
	return st.Mode().Perm()&0o200 == 0, nil
}

// detachAll lets go of the disks of a start, of which nothing runs any more: those that captures
// have too, whose devices nobody else would look for, and one whose file was removed before them.
func (r *Runtime) detachAll(ctx context.Context, spec runtime.Spec) error {
	if spec.DiskDir == "" {
		return nil
	}
	var errs []error
	for index := spec.DiskIndex; ; index += tops {
		path := r.disk.LivePath(spec.DiskDir, index)
		errs = append(errs, r.disk.Detach(ctx, disk.Live{Path: path}))
		if !fileExists(path) {
			return errors.Join(errs...)
		}
	}
}

// removeLive removes the live disks of a start; what a capture has of them stays, but for its
// devices. The last comes first, so that what an interrupted removal leaves is still found.
func (r *Runtime) removeLive(ctx context.Context, spec runtime.Spec) error {
	if err := r.detachAll(ctx, spec); err != nil {
		return err
	}
	var live []string
	for index := spec.DiskIndex; ; index += tops {
		path := r.disk.LivePath(spec.DiskDir, index)
		sealed, err := isSealed(path)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		if !sealed {
			live = append([]string{path}, live...)
		}
	}
	for _, path := range live {
		if err := r.disk.RemoveLive(ctx, disk.Live{Path: path}); err != nil {
			return err
		}
	}
	return nil
}

// shallow merges a stack's own layers, those in dir, into one. What lies in other directories
// (the template's layer, those that a fork has of its source) is shared and stays, unless only
// merging that makes the stack shallower.
func (r *Runtime) shallow(ctx context.Context, stack disk.Stack, dir string, index int) (disk.Stack, error) {
	shared := sharedLayers(stack, dir)
	below := disk.Stack{Base: stack.Base, Layers: stack.Layers[:shared]}
	dst := mergedPath(dir, index)
	// One that a crash left unpublished is nobody's.
	if err := os.Remove(dst); err != nil && !errors.Is(err, os.ErrNotExist) {
		return stack, fault.Wrap(err, "replace", dst)
	}
	merged, err := r.disk.Merge(ctx, below, stack.Layers[shared:], dst)
	if err != nil {
		return stack, err
	}
	return below.With(merged), nil
}

func mergedPath(dir string, index int) string {
	return filepath.Join(dir, fmt.Sprintf("merged-%d", index))
}

// sharedLayers is how many of a stack's layers shallow leaves as they are.
func sharedLayers(stack disk.Stack, dir string) int {
	shared := 0
	for shared < len(stack.Layers) && filepath.Dir(stack.Layers[shared].Path) != dir {
		shared++
	}
	if len(stack.Layers)-shared < 2 {
		shared = min(shared, 1)
	}
	return shared
}
