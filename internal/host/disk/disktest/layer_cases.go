package disktest

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
)

func forkOf16(r *rig) {
	stack := r.first(func(vm VM) { r.put(vm, r.content, 2*mb, 4*mb) })
	check := r.unchanged(stack)
	var all sync.WaitGroup
	vms := make([]VM, 16)
	lives := make([]disk.Live, len(vms))
	wants := make([][]byte, len(vms))
	for i := range vms {
		lives[i] = r.open(stack)
		vms[i] = r.run(lives[i])
		wants[i] = bytes.Clone(r.content[:8*mb])
		data := r.noise(256 * 1024)
		all.Go(func() {
			for n := range 8 {
				offset := int64(n)*mb + int64(i)*4096
				copy(wants[i][offset:], data)
				if _, err := vms[i].WriteAt(data, offset); err != nil {
					r.Error(err)
				}
			}
		})
	}
	all.Wait()
	for i, vm := range vms {
		got := make([]byte, len(wants[i]))
		_, err := vm.ReadAt(got, 0)
		require.NoError(r, err)
		r.same(wants[i], got)
		r.stop(vm, lives[i])
	}
	check()
}

// zerosStayZeros writes zeros over data of the base and of a layer, in the two ways a guest
// can, and follows them through everything that rewrites layers.
func zerosStayZeros(r *rig) {
	stack := r.first(func(vm VM) { r.put(vm, r.content, 20*mb, 2*mb) })
	stack = r.layer(stack, func(vm VM) {
		for _, offset := range []int64{0, 20 * mb} {
			clear(r.content[offset : offset+512*1024])
			require.NoError(r, vm.Zero(offset, 512*1024))
		}
		for _, offset := range []int64{7*mb + 4096, 21*mb + 512} {
			clear(r.content[offset : offset+200*1024])
			r.write(vm, make([]byte, 200*1024), offset)
		}
	})
	r.same(r.content, r.read(stack))

	merged, err := r.Merge(r.Context(), disk.Stack{Base: r.base}, stack.Layers, filepath.Join(r.dir, "both"))
	require.NoError(r, err)
	r.same(r.content, r.read(disk.Stack{Base: r.base, Layers: []disk.Layer{merged}}))

	below := disk.Stack{Base: r.base, Layers: stack.Layers[:1]}
	merged, err = r.Merge(r.Context(), below, stack.Layers[1:], filepath.Join(r.dir, "upper"))
	require.NoError(r, err)
	r.same(r.content, r.read(below.With(merged)))

	flat, err := r.Flatten(r.Context(), stack, filepath.Join(r.dir, "flat"))
	require.NoError(r, err)
	got, err := os.ReadFile(flat.Path)
	require.NoError(r, err)
	r.same(r.content, got)
}

// deep makes a stack as deep as allowed, of layers that cover one another in part.
func (r *rig) deep() disk.Stack {
	stack := r.first(func(vm VM) { r.put(vm, r.content, mb, mb) })
	for i := int64(1); i < disk.MaxDepth; i++ {
		stack = r.layer(stack, func(vm VM) {
			r.put(vm, r.content, i*mb+i*512, 3*mb/2)
			clear(r.content[40*mb+i*mb:][:64*1024])
			require.NoError(r, vm.Zero(40*mb+i*mb, 64*1024))
			r.put(vm, r.content, 41*mb+i*mb, 4096)
		})
	}
	return stack
}

func mergeAt8(r *rig) {
	stack := r.deep()
	require.Len(r, stack.Layers, disk.MaxDepth)
	check := r.unchanged(stack)
	dst := filepath.Join(r.dir, "merged")
	before := r.files()
	merged, err := r.Merge(r.Context(), disk.Stack{Base: r.base}, stack.Layers, dst)
	require.NoError(r, err)
	require.Equal(r, disk.Layer{Path: dst, SizeBytes: diskSize, Sum: merged.Sum}, merged)
	require.NotEmpty(r, merged.Sum)
	require.NoError(r, r.Verify(r.Context(), merged))
	require.ElementsMatch(r, append(before, dst), r.files())
	check()
	r.same(r.content, r.read(disk.Stack{Base: r.base}.With(merged)))

	sum := r.hash(dst)
	_, err = r.Merge(r.Context(), disk.Stack{Base: r.base}, stack.Layers, dst)
	require.True(r, fault.Is(err, fault.AlreadyExists), "%v", err)
	require.Equal(r, sum, r.hash(dst))
	_, err = r.Merge(r.Context(), disk.Stack{Base: r.base}, nil, dst+"2")
	require.True(r, fault.Is(err, fault.Invalid), "%v", err)
}

func mergeOfMiddleLayers(r *rig) {
	stack := r.deep()
	below := disk.Stack{Base: r.base, Layers: stack.Layers[:2]}
	merged, err := r.Merge(r.Context(), below, stack.Layers[2:6], filepath.Join(r.dir, "merged"))
	require.NoError(r, err)
	shorter := below.With(merged).With(stack.Layers[6]).With(stack.Layers[7])
	r.same(r.content, r.read(shorter))
	used, err := r.Usage(merged.Path)
	require.NoError(r, err)
	require.Less(r, used, int64(9*mb), "it holds what the four layers changed, and no more")
}

func grow(r *rig) {
	const larger = 2*diskSize + disk.SizeUnit
	live := r.create()
	vm := r.run(live)
	r.put(vm, r.content, diskSize-4096, 4096)
	r.stop(vm, live)
	same, err := r.Grow(r.Context(), live, diskSize)
	require.NoError(r, err)
	require.Equal(r, live, same)
	grown, err := r.Grow(r.Context(), live, larger)
	require.NoError(r, err)
	require.EqualValues(r, larger, grown.SizeBytes)
	again, err := r.Grow(r.Context(), live, larger)
	require.NoError(r, err, "a Grow whose record was lost may be repeated")
	require.Equal(r, grown, again)
	_, err = r.Grow(r.Context(), grown, diskSize)
	require.True(r, fault.Is(err, fault.Invalid), "%v", err)

	content := append(r.content, make([]byte, larger-diskSize)...)
	vm = r.run(grown)
	r.same(content, r.readAll(vm))
	r.put(vm, content, larger-8192, 8192)
	r.stop(vm, grown)
	stack := r.seal(grown)
	require.EqualValues(r, larger, stack.SizeBytes())
	r.same(content, r.read(stack))
	live, err = r.Open(r.Context(), stack, larger+mb, r.dir, r.nextIndex())
	require.NoError(r, err)
	vm = r.run(live)
	r.same(append(content, make([]byte, mb)...), r.readAll(vm))
	r.stop(vm, live)
}

func flattenIsEqualAndSparse(r *rig) {
	stack := r.first(func(vm VM) { r.put(vm, r.content, 10*mb+512, 5*mb) })
	// Lone blocks, and zeros written as data: a copy of whole clusters would take far more room.
	stack = r.layer(stack, func(vm VM) {
		for i := range int64(128) {
			r.put(vm, r.content, 40*mb+i*128*1024, 4096)
		}
		clear(r.content[11*mb : 13*mb])
		r.write(vm, make([]byte, 2*mb), 11*mb)
	})
	check := r.unchanged(stack)
	dst := filepath.Join(r.dir, "flat.raw")
	flat, err := r.Flatten(r.Context(), stack, dst)
	require.NoError(r, err)
	require.Equal(r, disk.Base{Path: dst, SizeBytes: diskSize}, flat)
	got, err := os.ReadFile(dst)
	require.NoError(r, err)
	r.same(r.content, got)
	used, err := r.Usage(dst)
	require.NoError(r, err)
	require.LessOrEqual(r, used, int64(dataIn(r.content))*12/10)
	check()

	_, err = r.Flatten(r.Context(), stack, dst)
	require.True(r, fault.Is(err, fault.AlreadyExists), "%v", err)
	live, err := r.Create(r.Context(), flat, 2*diskSize, r.dir, r.nextIndex())
	require.NoError(r, err)
	vm := r.run(live)
	r.same(append(r.content, make([]byte, diskSize)...), r.readAll(vm))
	r.stop(vm, live)
}

// dataIn counts the bytes in blocks that are not all zeros.
func dataIn(content []byte) int {
	n, zeros := 0, make([]byte, 4096)
	for i := 0; i < len(content); i += len(zeros) {
		if !bytes.Equal(content[i:i+len(zeros)], zeros) {
			n += len(zeros)
		}
	}
	return n
}

func removeIsIdempotent(r *rig) {
	stack := r.first(func(vm VM) { r.put(vm, r.content, 0, mb) })
	check := r.unchanged(disk.Stack{Base: r.base})
	live := r.open(stack)
	_, err := r.Attach(r.Context(), live)
	require.NoError(r, err)
	for range 2 {
		require.NoError(r, r.RemoveLive(r.Context(), live))
		require.Equal(r, []string{stack.Layers[0].Path}, r.files())
	}
	require.NoError(r, r.Detach(r.Context(), live))
	for range 2 {
		require.NoError(r, r.RemoveLayer(r.Context(), stack.Layers[0]))
		require.Empty(r, r.files())
	}
	check()
}

func usageIsReal(r *rig) {
	live := r.create()
	empty, err := r.Usage(live.Path)
	require.NoError(r, err)
	require.LessOrEqual(r, empty, int64(mb))
	vm := r.run(live)
	r.put(vm, r.content, 30*mb, 8*mb)
	require.NoError(r, vm.Flush())
	used, err := r.Usage(live.Path)
	require.NoError(r, err)
	require.InDelta(r, 8*mb, used-empty, mb)
	r.stop(vm, live)
	require.NoError(r, r.RemoveLive(r.Context(), live))
	_, err = r.Usage(live.Path)
	require.True(r, fault.Is(err, fault.NotFound), "%v", err)

	sparse := filepath.Join(r.TempDir(), "sparse")
	require.NoError(r, os.WriteFile(sparse, []byte("x"), 0o600))
	require.NoError(r, os.Truncate(sparse, 1<<30))
	used, err = r.Usage(sparse)
	require.NoError(r, err)
	require.Less(r, used, int64(mb))
}

// crashKeepsFlushedWrites ends a VM with signal 9 between writes: what it flushed is there,
// and each later block is the old or the new one.
func crashKeepsFlushedWrites(r *rig) {
	stack := r.first(func(vm VM) { r.put(vm, r.content, 20*mb, mb) })
	live := r.open(stack)
	vm := r.run(live)
	r.put(vm, r.content, 2*mb, 3*mb)
	r.put(vm, r.content, 20*mb+4096, 4096)
	require.NoError(r, vm.Flush())
	later := r.noise(2 * mb)
	for i := 0; i < len(later); i += 128 * 1024 {
		r.write(vm, later[i:i+128*1024], 4*mb+int64(i))
	}
	vm.Kill()
	require.NoError(r, r.Detach(r.Context(), live))

	vm = r.run(live)
	got := r.readAll(vm)
	for i := 0; i < len(later); i += 4096 {
		block := got[4*mb+i:][:4096]
		if bytes.Equal(block, later[i:i+4096]) {
			copy(r.content[4*mb+i:], block)
		}
	}
	r.same(r.content, got)
	r.put(vm, r.content, 5*mb, 2*mb)
	r.stop(vm, live)
	r.same(r.content, r.read(r.seal(live)))
}
