package disktest

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/disk"
)

const (
	mb       = 1 << 20
	baseSize = 16 * mb
	diskSize = 64 * mb
)

// rig is one case's driver, base image and directory.
type rig struct {
	*testing.T
	disk.Driver
	env  Env
	base disk.Base
	// content is what a new disk of diskSize over the base reads as.
	content []byte
	dir     string
	rand    *rand.Rand
	index   int
}

func newRig(t *testing.T, env Env) *rig {
	r := &rig{T: t, Driver: env.Driver, env: env, dir: t.TempDir()}
	r.rand = rand.New(rand.NewPCG(1, 2))
	r.base, r.content = r.makeBase()
	return r
}

// makeBase writes a sparse base: data at its start, in its middle and at its very end.
func (r *rig) makeBase() (disk.Base, []byte) {
	base := disk.Base{Path: filepath.Join(r.TempDir(), "base.raw"), SizeBytes: baseSize}
	content := make([]byte, diskSize)
	f, err := os.OpenFile(base.Path, os.O_WRONLY|os.O_CREATE, 0o400)
	require.NoError(r, err)
	defer func() { _ = f.Close() }()
	require.NoError(r, f.Truncate(baseSize))
	for _, offset := range []int64{0, 7*mb + 4096, baseSize - mb} {
		data := r.noise(mb)
		copy(content[offset:], data)
		_, err := f.WriteAt(data, offset)
		require.NoError(r, err)
	}
	return base, content
}

// noise returns n bytes of which no block is like another.
func (r *rig) noise(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(r.rand.Uint32()), byte(r.rand.Uint32()), byte(r.rand.Uint32()), byte(r.rand.Uint32())})
	_, _ = src.Read(b)
	return b
}

// nextIndex is one that no disk of this rig has had.
func (r *rig) nextIndex() int {
	r.index++
	return r.index - 1
}

func (r *rig) create() disk.Live {
	live, err := r.Create(r.Context(), r.base, diskSize, r.dir, r.nextIndex())
	require.NoError(r, err)
	return live
}

func (r *rig) open(stack disk.Stack) disk.Live {
	live, err := r.Open(r.Context(), stack, stack.SizeBytes(), r.dir, r.nextIndex())
	require.NoError(r, err)
	return live
}

// run starts a VM on the disk.
func (r *rig) run(live disk.Live) VM {
	att, err := r.Attach(r.Context(), live)
	require.NoError(r, err)
	vm := r.env.Open(r, att)
	require.Equal(r, live.SizeBytes, vm.Size())
	return vm
}

// stop ends the VM and detaches its disk.
func (r *rig) stop(vm VM, live disk.Live) {
	require.NoError(r, vm.Close())
	require.NoError(r, r.Detach(r.Context(), live))
}

// seal seals a disk that no VM uses and returns the stack with the new layer.
func (r *rig) seal(live disk.Live) disk.Stack {
	layer, next, err := r.Seal(r.Context(), live, 0, nil)
	require.NoError(r, err)
	require.Nil(r, next)
	require.Equal(r, live.SizeBytes, layer.SizeBytes)
	return live.Stack.With(layer)
}

// layer puts one more layer on the stack, with writes made by a VM, and returns both.
func (r *rig) layer(stack disk.Stack, write func(VM)) disk.Stack {
	live := r.open(stack)
	vm := r.run(live)
	write(vm)
	r.stop(vm, live)
	return r.seal(live)
}

// first is the first layer over the base.
func (r *rig) first(write func(VM)) disk.Stack {
	live := r.create()
	vm := r.run(live)
	write(vm)
	r.stop(vm, live)
	return r.seal(live)
}

func (r *rig) write(vm VM, data []byte, offset int64) {
	_, err := vm.WriteAt(data, offset)
	require.NoError(r, err)
}

// put writes fresh data to the VM's disk and to the model of its content.
func (r *rig) put(vm VM, model []byte, offset int64, n int) {
	data := r.noise(n)
	copy(model[offset:], data)
	r.write(vm, data, offset)
}

func (r *rig) readAll(vm VM) []byte {
	b := make([]byte, vm.Size())
	_, err := vm.ReadAt(b, 0)
	require.NoError(r, err)
	return b
}

// read returns a stack's content, as a VM over it sees it.
func (r *rig) read(stack disk.Stack) []byte {
	live := r.open(stack)
	vm := r.run(live)
	b := r.readAll(vm)
	r.stop(vm, live)
	require.NoError(r, r.RemoveLive(r.Context(), live))
	return b
}

// same compares content without printing megabytes of difference.
func (r *rig) same(want, got []byte) {
	r.Helper()
	require.Len(r, got, len(want))
	if bytes.Equal(want, got) {
		return
	}
	for i := range want {
		if want[i] != got[i] {
			require.FailNowf(r, "content differs", "first at byte %d: want %#x, got %#x", i, want[i], got[i])
		}
	}
}

func (r *rig) hash(path string) [sha256.Size]byte {
	f, err := os.Open(path)
	require.NoError(r, err)
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(r, err)
	return [sha256.Size]byte(h.Sum(nil))
}

// unchanged returns a check that the base and every layer are as they are now.
func (r *rig) unchanged(stack disk.Stack) func() {
	before := map[string][sha256.Size]byte{stack.Base.Path: r.hash(stack.Base.Path)}
	for _, l := range stack.Layers {
		before[l.Path] = r.hash(l.Path)
	}
	return func() {
		r.Helper()
		for path, sum := range before {
			require.Equal(r, sum, r.hash(path), path)
		}
	}
}

// files are the names in the rig's directory.
func (r *rig) files() []string {
	entries, err := os.ReadDir(r.dir)
	require.NoError(r, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, filepath.Join(r.dir, e.Name()))
	}
	return names
}
