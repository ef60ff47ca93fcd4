package disktest

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
)

// damages are what a disk or an operator may do to a file, each where it makes a difference.
var damages = []struct {
	name string
	do   func(r *rig, f *os.File, size int64)
}{
	{"bit flipped", func(r *rig, f *os.File, size int64) {
		at, b := r.rand.Int64N(size), []byte{0}
		_, err := f.ReadAt(b, at)
		require.NoError(r, err)
		b[0] ^= 1 << r.rand.IntN(8)
		_, err = f.WriteAt(b, at)
		require.NoError(r, err)
	}},
	{"truncated", func(r *rig, f *os.File, size int64) { require.NoError(r, f.Truncate(r.rand.Int64N(size))) }},
	{"one byte short", func(r *rig, f *os.File, size int64) { require.NoError(r, f.Truncate(size-1)) }},
	{"grown", func(r *rig, f *os.File, size int64) { require.NoError(r, f.Truncate(size+1+r.rand.Int64N(mb))) }},
	{"hole punched", func(r *rig, f *os.File, _ int64) {
		at, n := someData(r, f)
		const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		require.NoError(r, unix.Fallocate(int(f.Fd()), punch, at, n))
	}},
	{"missing", func(r *rig, f *os.File, _ int64) { require.NoError(r, os.Remove(f.Name())) }},
}

// someData is a block of the file that is not zeros.
func someData(r *rig, f *os.File) (offset, n int64) {
	block := make([]byte, 4096)
	for at := int64(0); ; at += int64(len(block)) {
		_, err := f.ReadAt(block, at)
		require.NoError(r, err)
		for _, b := range block {
			if b != 0 {
				return at, int64(len(block))
			}
		}
	}
}

// copyOf is the layer in another file: its sum is of the content, not of how that lies on disk.
func (r *rig) copyOf(l disk.Layer, name string) disk.Layer {
	src, err := os.Open(l.Path)
	require.NoError(r, err)
	defer func() { _ = src.Close() }()
	l.Path = filepath.Join(r.dir, name)
	dst, err := os.OpenFile(l.Path, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(r, err)
	defer func() { _ = dst.Close() }()
	_, err = io.Copy(dst, struct{ io.Reader }{src}) // without holes
	require.NoError(r, err)
	return l
}

func (r *rig) damage(path string, do func(*rig, *os.File, int64)) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(r, err)
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	require.NoError(r, err)
	do(r, f, st.Size())
}

func (r *rig) dataLoss(err error, path string) {
	r.Helper()
	require.Equal(r, fault.DataLoss, fault.KindOf(err), "%v", err)
	require.ErrorContains(r, err, path)
	require.NotEmpty(r, fault.HintOf(err))
}

func verifyFindsDamage(r *rig) {
	stack := r.first(func(vm VM) {
		r.put(vm, r.content, 0, 3*mb)
		require.NoError(r, vm.Discard(mb, mb)) // a hole, where the driver can
		r.put(vm, r.content, 40*mb, 4096)
	})
	layer := stack.Layers[0]
	require.NotEmpty(r, layer.Sum)
	require.NoError(r, r.Verify(r.Context(), layer))
	require.NoError(r, r.Verify(r.Context(), r.copyOf(layer, "copy")))
	gone, cancel := context.WithCancel(r.Context())
	cancel()
	require.ErrorIs(r, r.Verify(gone, layer), context.Canceled)
	for _, d := range damages {
		for range 5 {
			damaged := r.copyOf(layer, "damaged")
			r.damage(damaged.Path, d.do)
			r.dataLoss(r.Verify(r.Context(), damaged), damaged.Path)
			damaged.Sum = ""
			require.NoError(r, r.Verify(r.Context(), damaged), "it never had a sum")
			_ = os.Remove(damaged.Path)
		}
	}
	require.NoError(r, r.Verify(r.Context(), layer))
}

// damageIsNotCopied: a layer made of a damaged one would look whole.
func damageIsNotCopied(r *rig) {
	stack := r.first(func(vm VM) { r.put(vm, r.content, 0, mb) })
	stack = r.layer(stack, func(vm VM) { r.put(vm, r.content, 2*mb, mb) })
	bad := r.copyOf(stack.Layers[0], "bad")
	r.damage(bad.Path, func(r *rig, f *os.File, _ int64) {
		// The guest's data, so that nothing but the sum can tell.
		data := r.content[mb/2 : mb/2+4096]
		_, err := f.WriteAt([]byte{data[0] ^ 1}, indexIn(r, f, data))
		require.NoError(r, err)
	})
	layers := []disk.Layer{bad, stack.Layers[1]}
	before := r.files()
	_, err := r.Merge(r.Context(), disk.Stack{Base: r.base}, layers, filepath.Join(r.dir, "merged"))
	r.dataLoss(err, bad.Path)
	_, err = r.Flatten(r.Context(), disk.Stack{Base: r.base, Layers: layers}, filepath.Join(r.dir, "flat"))
	r.dataLoss(err, bad.Path)
	require.ElementsMatch(r, before, r.files())
}

// indexIn finds a block in a file.
func indexIn(r *rig, f *os.File, block []byte) int64 {
	all, err := os.ReadFile(f.Name())
	require.NoError(r, err)
	for at := 0; at+len(block) <= len(all); at += 512 {
		if string(all[at:at+len(block)]) == string(block) {
			return int64(at)
		}
	}
	require.FailNow(r, "the guest's data is not in the layer's file")
	return 0
}
