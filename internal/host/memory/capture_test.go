package memory

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

func TestCaptureAndApplyGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	tmpl := template(t, 4096)
	v := startVMM(t, tmpl)
	v.do("read", 0, 4096, 0)
	v.do("fill", 0, 3, 1)
	v.do("fill", 100, 700, 2)
	v.do("zero", 800, 50, 0)
	v.do("zero", 3000, 5, 0)
	v.do("fill", 4095, 1, 3)
	s := newSaved(t)
	stats := s.capture(v)
	require.Equal(t, 3+700+50+5+1, stats.Private)
	require.Equal(t, 704, stats.Written)
	require.Equal(t, 55, stats.Zero)
	require.Equal(t, int64(704*PageSize), stats.Bytes)
	require.Equal(t, Page{}, s.mp.At(3), "a page only read is unchanged")
	require.Equal(t, Page{Kind: Zero}, s.mp.At(800), "the template has data here")
	require.Equal(t, Page{Kind: Zero}, s.mp.At(3000), "the template is zero here")
	require.Equal(t, Page{}, s.mp.At(2999))
	require.Equal(t, Data, s.mp.At(4095).Kind)

	w := startVMM(t, tmpl)
	got := s.apply(w)
	require.Equal(t, 704, got.Written)
	require.Equal(t, 55, got.Zero)
	w.sameAs(v.bytes())
	used, err := Usage(w.m.PID, w.m.Addr, w.m.Bytes)
	require.NoError(t, err)
	require.Equal(t, int64(759*PageSize), used)
}

func TestSecondCaptureWritesOnlyTheChange(t *testing.T) {
	t.Parallel()
	tmpl := template(t, 2048)
	v := startVMM(t, tmpl)
	v.do("fill", 10, 1000, 7)
	s := newSaved(t)
	s.capture(v)
	w := startVMM(t, tmpl)
	s.apply(w)
	w.do("fill", 500, 2, 8)   // saved before, changed
	w.do("fill", 1500, 1, 9)  // new
	w.do("zero", 20, 1, 0)    // saved before, zero now
	w.do("fill", 10, 1000, 7) // written with what it holds: only pages 20, 500 and 501 differ
	w.do("fill", 500, 2, 8)
	w.do("zero", 20, 1, 0)
	stats := s.capture(w)
	require.Equal(t, 3, stats.Written)
	require.Equal(t, 1, stats.Zero)
	require.Equal(t, 997, stats.Same)
	require.Zero(t, stats.Returned)
	require.Equal(t, 2, s.mp.Layers())
	x := startVMM(t, tmpl)
	s.apply(x)
	x.sameAs(w.bytes())
	require.Equal(t, 0, s.capture(x).Written, "nothing ran")
}

// A page that was discarded shows the template again; the capture must say so and not keep
// what was saved before.
func TestDiscardedPageIsSavedAsTheVMSeesIt(t *testing.T) {
	t.Parallel()
	tmpl := template(t, 64)
	v := startVMM(t, tmpl)
	v.do("fill", 0, 64, 5)
	s := newSaved(t)
	s.capture(v)
	v.do("discard", 8, 4, 0)
	v.do("discard", 40, 4, 0)
	stats := s.capture(v)
	require.Equal(t, 8, stats.Returned)
	require.Equal(t, 4, stats.Written, "the first four are data of the template")
	require.Equal(t, 4, stats.Zero, "the template is zero in its second half")
	w := startVMM(t, tmpl)
	s.apply(w)
	w.sameAs(v.bytes())
}

// Random histories, through map files, merges and new processes.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	tmpl := template(t, 512)
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := newSaved(t)
		v := startVMM(t, tmpl)
		for range MaxLayers + 3 {
			for range 1 + r.IntN(12) {
				at := r.IntN(512)
				n := 1 + r.IntN(min(40, 512-at))
				v.do([]string{"fill", "fill", "zero", "read"}[r.IntN(4)], at, n, r.Uint64()%8)
			}
			if s.mp != nil && s.mp.Layers() == MaxLayers {
				s.merge()
			}
			s.capture(v)
			w := startVMM(t, tmpl)
			s.apply(w)
			w.sameAs(v.bytes())
			v.kill()
			v = w
		}
	}
}

func (s *saved) merge() {
	s.t.Helper()
	dst := filepath.Join(s.dir, fmt.Sprintf("merged-%d", s.files))
	mp, stats, err := Merge(context.Background(), s.mp, s.open(), dst)
	require.NoError(s.t, err)
	require.Equal(s.t, s.mp.DataPages(), stats.Written)
	require.Equal(s.t, s.mp.ZeroPages(), mp.ZeroPages())
	s.layers = []string{dst}
	s.publish(mp)
}

func TestMergeEightLayers(t *testing.T) {
	t.Parallel()
	tmpl := template(t, 1024)
	v := startVMM(t, tmpl)
	s := newSaved(t)
	for i := range MaxLayers {
		v.do("fill", i*50, 100, uint64(i))
		v.do("zero", i*50+10, 3, 0)
		s.capture(v)
	}
	_, _, err := CaptureFile(context.Background(), v.m, s.mp, filepath.Join(s.dir, "ninth"), false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.NoFileExists(t, filepath.Join(s.dir, "ninth"))
	s.merge()
	require.Equal(t, 1, s.mp.Layers())
	w := startVMM(t, tmpl)
	s.apply(w)
	w.sameAs(v.bytes())
	require.NotContains(t, leftovers(t, s.dir), "tmp")
}

// QEMU asks for huge pages: a huge page of the template must not count as the VM's own, nor
// may one written page make its neighbours so.
func TestHugePagesStayTheTemplates(t *testing.T) {
	t.Parallel()
	tmpl := template(t, 4096)
	v := startVMM(t, tmpl)
	v.do("huge", 0, 4096, 0)
	v.do("read", 0, 4096, 0)
	v.do("fill", 5, 1, 1)
	v.do("fill", 3000, 2, 1)
	s := newSaved(t)
	require.Equal(t, 3, s.capture(v).Private)
	w := startVMM(t, tmpl)
	w.do("huge", 0, 4096, 0)
	s.apply(w)
	w.sameAs(v.bytes())
	used, err := Usage(w.m.PID, w.m.Addr, w.m.Bytes)
	require.NoError(t, err)
	require.Equal(t, int64(3*PageSize), used)
}

func TestScansAgree(t *testing.T) {
	t.Parallel()
	v := startVMM(t, template(t, 4096))
	r := rand.New(rand.NewPCG(1, 1))
	v.do("read", 0, 4096, 0)
	for range 1500 {
		v.do("fill", r.IntN(4096), 1, 1)
	}
	p, err := openProcess(v.m, os.O_RDONLY)
	require.NoError(t, err)
	defer p.close()
	slow, err := scanEntries(context.Background(), p.pagemap, v.m, true)
	require.NoError(t, err)
	fast, err := scanIoctl(context.Background(), p.pagemap, v.m, true)
	if err != nil {
		t.Skipf("PAGEMAP_SCAN is missing in this kernel (before 6.7): %v", err)
	}
	require.Equal(t, slow, fast)
}

func TestSwappedPagesAreCaptured(t *testing.T) {
	t.Parallel()
	var info unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&info))
	if info.Totalswap == 0 {
		t.Skip("this machine has no swap")
	}
	tmpl := template(t, 512)
	v := startVMM(t, tmpl)
	v.do("fill", 0, 512, 4)
	want := v.bytes()
	v.do("pageout", 0, 512, 0)
	s := newSaved(t)
	require.Equal(t, 512, s.capture(v).Private)
	w := startVMM(t, tmpl)
	s.apply(w)
	w.sameAs(want)
}

func TestCaptureRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	tmpl := template(t, 16)
	v := startVMM(t, tmpl)
	v.do("fill", 0, 4, 1)
	s := newSaved(t)
	s.capture(v)
	try := func(m Mapping, parent *Map) error {
		path := filepath.Join(t.TempDir(), "layer")
		_, _, err := CaptureFile(ctx, m, parent, path, true)
		require.NoFileExists(t, path)
		return err
	}
	small := v.m
	small.Bytes = 8 * PageSize
	require.True(t, fault.Is(try(small, s.mp), fault.FailedPrecondition))
	odd := v.m
	odd.Bytes++
	require.True(t, fault.Is(try(odd, nil), fault.Invalid))
	other := v.m
	other.Template = Hash{Lo: 2}
	s.mp.template = Hash{Lo: 1}
	require.ErrorContains(t, try(other, s.mp), "another template")
	_, err := Apply(ctx, other, s.mp, s.open())
	require.ErrorContains(t, err, "another template")
	_, err = Apply(ctx, v.m, s.mp, nil)
	require.ErrorContains(t, err, "0 layers given")

	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	_, _, err = Capture(ctx, v.m, nil, full)
	require.NoError(t, full.Close())
	require.True(t, fault.Is(err, fault.ResourceExhausted), "%v", err)

	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_, _, err = CaptureFile(canceled, v.m, nil, filepath.Join(s.dir, "canceled"), false)
	require.ErrorIs(t, err, context.Canceled)
	v.kill()
	require.True(t, fault.Is(try(v.m, nil), fault.NotFound))
	_, err = Usage(v.m.PID, v.m.Addr, v.m.Bytes)
	require.True(t, fault.Is(err, fault.NotFound))
}

func TestApplyRefusesDamagedLayers(t *testing.T) {
	t.Parallel()
	tmpl := template(t, 64)
	v := startVMM(t, tmpl)
	v.do("fill", 0, 32, 1)
	s := newSaved(t)
	s.capture(v)
	clean, err := os.ReadFile(s.layers[0])
	require.NoError(t, err)
	w := startVMM(t, tmpl)
	r := rand.New(rand.NewPCG(3, 3))
	for range 1000 {
		bad := append([]byte(nil), clean...)
		at := r.IntN(len(bad))
		bad[at] ^= 1 << r.IntN(8)
		_, err := Apply(context.Background(), w.m, s.mp, []io.ReaderAt{readerAt(bad)})
		require.ErrorContains(t, err, "layer 0 page")
	}
	_, err = Apply(context.Background(), w.m, s.mp, []io.ReaderAt{readerAt(clean[:len(clean)-1])})
	require.ErrorContains(t, err, "layer 0 page 31 cannot be read")
	_, _, err = Merge(context.Background(), s.mp, []io.ReaderAt{readerAt(clean[:8])}, filepath.Join(s.dir, "merged"))
	require.Error(t, err)
	require.Equal(t, "layer-0 map", leftovers(t, s.dir))
}

type readerAt []byte

func (r readerAt) ReadAt(b []byte, at int64) (int, error) {
	if at >= int64(len(r)) {
		return 0, io.EOF
	}
	n := copy(b, r[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
