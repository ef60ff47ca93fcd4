package cow_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/cow"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

const (
	mb   = 1 << 20
	size = 8 * mb
)

func newFile(t testing.TB) *os.File {
	f, err := os.Create(filepath.Join(t.TempDir(), "cow"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func noise(n int) []byte {
	b, seed := make([]byte, n), [32]byte{}
	binary.LittleEndian.PutUint64(seed[:], rand.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

// write makes a file of the given chunks, in the disk's order.
func write(t testing.TB, content map[int64][]byte) *os.File {
	f := newFile(t)
	w := cow.NewWriter(f)
	for chunk := range int64(size / cow.ChunkSize) {
		if data, found := content[chunk]; found {
			require.NoError(t, w.Put(chunk, data))
		}
	}
	require.NoError(t, w.Finish())
	return f
}

func open(t testing.TB, f *os.File) *cow.Image {
	img, err := cow.Open(f, size)
	require.NoError(t, err)
	return img
}

func read(t testing.TB, f *os.File, img *cow.Image, chunk int64) []byte {
	at, found := img.Find(chunk)
	require.True(t, found, chunk)
	b := make([]byte, cow.ChunkSize)
	require.NoError(t, layerfile.ReadPadded(f, b, at*cow.ChunkSize))
	return b
}

func end(t testing.TB, f *os.File) int64 {
	st, err := f.Stat()
	require.NoError(t, err)
	return st.Size()
}

func used(t testing.TB, f *os.File) int64 {
	n, err := layerfile.Usage(f.Name())
	require.NoError(t, err)
	return n
}

// TestWriteAndRead goes over the bounds of metadata areas; what was written is there, no more,
// and the file ends where its content does.
func TestWriteAndRead(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{0, 1, 255, 256, 257, 511, 512, 513, 1000} {
		content := map[int64][]byte{}
		for i := range n {
			content[2*i+1] = noise(cow.ChunkSize)
		}
		f := write(t, content)
		img := open(t, f)
		require.EqualValues(t, n, img.Len())
		require.Equal(t, end(t, f), img.End(), "%d chunks", n)
		for i := range n {
			require.True(t, bytes.Equal(content[2*i+1], read(t, f, img, 2*i+1)))
			_, found := img.Find(2 * i)
			require.False(t, found)
		}
		require.LessOrEqual(t, used(t, f), n*cow.ChunkSize*11/10+64<<10)
	}
}

func TestZerosTakeNoRoom(t *testing.T) {
	t.Parallel()
	content := map[int64][]byte{}
	for i := range int64(1000) {
		content[i] = make([]byte, cow.ChunkSize)
	}
	f := write(t, content)
	require.Equal(t, 1000, open(t, f).Len())
	require.LessOrEqual(t, used(t, f), int64(64<<10))
}

// TestSizeForHoldsEverything: with every chunk of the disk written there is room for one more,
// which is what the kernel asks for.
func TestSizeForHoldsEverything(t *testing.T) {
	t.Parallel()
	content := map[int64][]byte{}
	for i := range int64(size / cow.ChunkSize) {
		content[i] = make([]byte, cow.ChunkSize)
	}
	full := end(t, write(t, content))
	require.Greater(t, cow.SizeFor(size), full)
	require.LessOrEqual(t, cow.SizeFor(size), full+2*mb)
	for _, n := range []int64{1, cow.ChunkSize, 256 * cow.ChunkSize, 257*cow.ChunkSize - 1, 5 << 30, 4 << 40} {
		require.Zero(t, cow.SizeFor(n)%cow.ChunkSize)
		require.Greater(t, cow.SizeFor(n), n+n/256)
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	f := newFile(t)
	require.NoError(t, cow.Create(f, size, nil))
	require.Zero(t, open(t, f).Len())
	require.Equal(t, cow.SizeFor(size), end(t, f))
	require.LessOrEqual(t, used(t, f), int64(8<<10))
}

func TestTail(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, 511, 4096 + 17, 3*4096 - 1, 3*4096 + 1000} {
		base := newFile(t)
		content := noise(int(n))
		_, err := base.WriteAt(content, 0)
		require.NoError(t, err)
		tail, err := cow.Tail(base, n)
		require.NoError(t, err)
		f := newFile(t)
		require.NoError(t, cow.Create(f, size, tail))
		at := n / cow.ChunkSize
		want := make([]byte, cow.ChunkSize)
		copy(want, content[at*cow.ChunkSize:])
		require.True(t, bytes.Equal(want, read(t, f, open(t, f), at)))
	}
	for _, n := range []int64{512, 4096, 8192 + 512} {
		tail, err := cow.Tail(nil, n)
		require.NoError(t, err)
		require.Nil(t, tail)
	}
}

// stack is random layers over a sparse base, and what they read as.
type stack struct {
	base   *os.File
	layers []*cow.Image
	files  []*os.File
	model  []byte
}

func newStack(t testing.TB, n int) *stack {
	s := &stack{base: newFile(t), model: make([]byte, size)}
	require.NoError(t, s.base.Truncate(size/2))
	for _, at := range []int{0, mb + 4096, size/2 - 4096} {
		data := noise(4096)
		copy(s.model[at:], data)
		_, err := s.base.WriteAt(data, int64(at))
		require.NoError(t, err)
	}
	for range n {
		content := map[int64][]byte{}
		for range 300 {
			chunk := rand.Int64N(size / cow.ChunkSize)
			content[chunk] = noise(cow.ChunkSize)
			if rand.IntN(3) == 0 {
				clear(content[chunk])
			}
		}
		content[0], content[mb/4096+1] = make([]byte, cow.ChunkSize), noise(cow.ChunkSize)
		for chunk, data := range content {
			copy(s.model[chunk*cow.ChunkSize:], data)
		}
		f := write(t, content)
		s.files, s.layers = append(s.files, f), append(s.layers, open(t, f))
	}
	return s
}

func (s *stack) flat(t testing.TB, layers []*cow.Image) []byte {
	dst := newFile(t)
	require.NoError(t, cow.Flatten(t.Context(), dst, s.base, size/2, layers, size))
	got, err := os.ReadFile(dst.Name())
	require.NoError(t, err)
	data := 0
	for b := range slices.Chunk(got, 4096) {
		if !layerfile.IsZero(b) {
			data += 4096
		}
	}
	require.LessOrEqual(t, used(t, dst), int64(data+64<<10), "holes stay holes and zeros become holes")
	return got
}

func (s *stack) merge(t testing.TB, from, to int) *cow.Image {
	dst := newFile(t)
	below := cow.Below{Base: s.base, BaseBytes: size / 2, Layers: s.layers[:from]}
	require.NoError(t, cow.Merge(t.Context(), dst, s.layers[from:to], below))
	img := open(t, dst)
	require.Equal(t, end(t, dst), img.End())
	return img
}

func TestMergeAndFlatten(t *testing.T) {
	t.Parallel()
	s := newStack(t, 6)
	require.True(t, bytes.Equal(s.model, s.flat(t, s.layers)))
	all := s.merge(t, 0, 6)
	require.True(t, bytes.Equal(s.model, s.flat(t, []*cow.Image{all})))
	_, found := all.Find(0)
	require.True(t, found, "zeros over the base's data are kept")
	middle := s.merge(t, 2, 5)
	require.True(t, bytes.Equal(s.model, s.flat(t, []*cow.Image{s.layers[0], s.layers[1], middle, s.layers[5]})))
}

func TestZerosOverNothingAreLeftOut(t *testing.T) {
	t.Parallel()
	zeros := make([]byte, cow.ChunkSize)
	s := newStack(t, 0)
	first := open(t, write(t, map[int64][]byte{1000: noise(cow.ChunkSize)}))
	second := open(t, write(t, map[int64][]byte{0: zeros, 1: zeros, 1000: zeros, 1500: zeros}))
	merge := func(layers []*cow.Image, below ...*cow.Image) *cow.Image {
		dst := newFile(t)
		require.NoError(t, cow.Merge(t.Context(), dst, layers, cow.Below{Base: s.base, BaseBytes: size / 2, Layers: below}))
		return open(t, dst)
	}
	has := func(img *cow.Image) (chunks []int64) {
		for chunk := range int64(size / cow.ChunkSize) {
			if _, found := img.Find(chunk); found {
				chunks = append(chunks, chunk)
			}
		}
		return chunks
	}
	require.Equal(t, []int64{0}, has(merge([]*cow.Image{first, second})))
	require.Equal(t, []int64{0, 1000}, has(merge([]*cow.Image{second}, first)))
}

func TestCancel(t *testing.T) {
	t.Parallel()
	s := newStack(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, cow.Merge(ctx, newFile(t), s.layers, cow.Below{Base: s.base, BaseBytes: size / 2}), context.Canceled)
	require.ErrorIs(t, cow.Flatten(ctx, newFile(t), s.base, size/2, s.layers, size), context.Canceled)
}

// TestDamageIsDataLoss changes one number of a file of two chunks.
func TestDamageIsDataLoss(t *testing.T) {
	t.Parallel()
	le64 := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
	const area = cow.ChunkSize
	for name, change := range map[string]struct {
		at    int64
		bytes []byte
		cause string
	}{
		"magic":            {0, []byte{0}, "not a copy-on-write file"},
		"invalid":          {4, []byte{0}, cow.Invalid},
		"version":          {8, []byte{2}, "version 2"},
		"chunk size":       {12, []byte{16}, "16 sectors"},
		"beyond the disk":  {area, le64(size / cow.ChunkSize), "of a disk of"},
		"far beyond":       {area, le64(1<<64 - 1), "of a disk of"},
		"header as data":   {area + 16 + 8, le64(1), "as data"},
		"area as data":     {area + 8, le64(258), "as data"},
		"beyond the file":  {area + 8, le64(4), "as data"},
		"negative":         {area + 8, le64(1 << 63), "as data"},
		"same data twice":  {area + 8, le64(3), "listed twice"},
		"same chunk twice": {area, le64(7), "the disk's chunk 7 twice"},
	} {
		f := write(t, map[int64][]byte{5: noise(cow.ChunkSize), 7: noise(cow.ChunkSize)})
		_, err := f.WriteAt(change.bytes, change.at)
		require.NoError(t, err)
		_, err = cow.Open(f, size)
		require.Truef(t, fault.Is(err, fault.DataLoss), "%s: %v", name, err)
		require.ErrorContains(t, err, change.cause, name)
		require.ErrorContains(t, err, f.Name())
		require.NotEmpty(t, fault.HintOf(err))
	}
	f := write(t, map[int64][]byte{5: noise(cow.ChunkSize)})
	require.NoError(t, f.Truncate(cow.ChunkSize))
	_, err := cow.Open(f, size)
	require.True(t, fault.Is(err, fault.DataLoss), "%v", err)
	require.NoError(t, f.Truncate(0))
	require.True(t, fault.Is(cow.Check(f), fault.DataLoss))
}

// FuzzOpen overwrites part of a file's header and first area: reading it ends, and what it has
// leads into the file.
func FuzzOpen(f *testing.F) {
	seed, err := os.ReadFile(write(f, map[int64][]byte{0: noise(cow.ChunkSize), 9: noise(cow.ChunkSize)}).Name())
	require.NoError(f, err)
	f.Add(uint16(0), []byte{})
	f.Add(uint16(4), []byte{0})
	f.Add(uint16(cow.ChunkSize+8), []byte{3, 0, 0, 0, 0, 0, 0, 0, 7})
	f.Add(uint16(cow.ChunkSize+32), []byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	file, err := os.Create(filepath.Join(f.TempDir(), "cow"))
	require.NoError(f, err)
	defer func() { _ = file.Close() }()
	f.Fuzz(func(t *testing.T, at uint16, change []byte) {
		content := slices.Clone(seed)
		copy(content[min(int(at), len(content)):], change)
		_, err := file.WriteAt(content, 0)
		require.NoError(t, err)
		img, err := cow.Open(file, size)
		if err != nil {
			require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
			return
		}
		for chunk := range int64(size / cow.ChunkSize) {
			if at, found := img.Find(chunk); found {
				require.Less(t, at*cow.ChunkSize, int64(len(content)))
				require.GreaterOrEqual(t, at, int64(2))
			}
		}
	})
}
