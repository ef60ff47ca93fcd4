package memory

import (
	"context"
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
	mp, stats, err := Merge(context.Background(), s.mp, s.open(), s.dir)
	require.NoError(s.t, err)
	require.Equal(s.t, s.mp.DataPages(), stats.Written)
	require.Equal(s.t, s.mp.ZeroPages(), mp.ZeroPages())
	s.layers = []string{filepath.Join(s.dir, mp.LayerName(0))}
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
	ninth := t.TempDir()
	_, _, err := CaptureFile(context.Background(), v.m, s.mp, ninth, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	require.Empty(t, leftovers(t, ninth))
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
		dir := t.TempDir()
		_, _, err := CaptureFile(ctx, m, parent, dir, true)
		require.Empty(t, leftovers(t, dir))
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
	_, _, err = CaptureFile(canceled, v.m, nil, t.TempDir(), false)
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
	apply := func(layers ...io.ReaderAt) error {
		_, err := Apply(context.Background(), w.m, s.mp, layers)
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
		return err
	}
	r := rand.New(rand.NewPCG(3, 3))
	for range 1000 {
		bad := append([]byte(nil), clean...)
		at := r.IntN(len(bad))
		bad[at] ^= 1 << r.IntN(8)
		require.ErrorContains(t, apply(readerAt(bad)), "layer 0 page")
	}
	require.ErrorContains(t, apply(readerAt(clean[:len(clean)-1])), "layer 0 page 31 cannot be read")
	_, _, err = Merge(context.Background(), s.mp, []io.ReaderAt{readerAt(clean[:8])}, s.dir)
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	require.Equal(t, "map "+s.mp.LayerName(0), leftovers(t, s.dir))

	// A page that a later capture has replaced belongs to its layer all the same.
	v.do("fill", 0, 1, 2)
	v.do("fill", 20, 5, 2)
	s.capture(v)
	second, err := os.ReadFile(s.layers[1])
	require.NoError(t, err)
	s.apply(w)
	for _, page := range []int{0, 20, 24} {
		bad := append([]byte(nil), clean...)
		bad[page*PageSize+r.IntN(PageSize)] ^= 1
		require.ErrorContains(t, apply(readerAt(bad), readerAt(second)), "layer 0 holds other pages")
	}
}

// A map's layers are told by their names, wherever they lie.
func TestOpenLayersRefuses(t *testing.T) {
	t.Parallel()
	v := startVMM(t, template(t, 64))
	s := newSaved(t)
	for i := range 2 {
		v.do("fill", i, 4, uint64(i))
		s.capture(v)
	}
	open := func(paths ...string) error {
		layers, err := OpenLayers(s.mp, paths)
		if err == nil {
			require.NoError(t, layers.Close())
		}
		return err
	}
	elsewhere := filepath.Join(t.TempDir(), "2-"+s.mp.LayerName(0))
	require.NoError(t, os.Link(s.layers[0], elsewhere))
	require.NoError(t, open(elsewhere, s.layers[1]))
	renamed := filepath.Join(t.TempDir(), "memory.layer")
	require.NoError(t, os.Link(s.layers[0], renamed))
	for name, paths := range map[string][]string{
		"too few": s.layers[:1], "too many": append(s.layers, s.layers[0]), "swapped": {s.layers[1], s.layers[0]},
		"not called so": {renamed, s.layers[1]}, "missing": {filepath.Join(t.TempDir(), s.mp.LayerName(0)), s.layers[1]},
	} {
		err := open(paths...)
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%s: %v", name, err)
		require.NotEmpty(t, fault.HintOf(err))
	}
	require.NoError(t, os.Truncate(s.layers[0], 5))
	require.ErrorContains(t, open(s.layers...), "5 bytes long")
	s.mp.layers[0].id = Hash{} // of a version that knew none
	require.NoError(t, os.Truncate(renamed, s.mp.LayerBytes(0)))
	require.NoError(t, open(renamed, s.layers[1]))
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
