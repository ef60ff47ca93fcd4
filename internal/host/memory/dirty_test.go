package memory

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// sparse makes a file of pages that holds only those that put writes.
func sparse(t testing.TB, pages int, put func(write func(n int, seed uint64))) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "dirty"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, f.Truncate(int64(pages)*PageSize))
	put(func(n int, seed uint64) {
		page := make([]byte, PageSize)
		if seed != 0 {
			pattern(page, seed)
		}
		_, err := f.WriteAt(page, int64(n)*PageSize)
		require.NoError(t, err)
	})
	return f
}

func pageOf(seed uint64) []byte {
	b := make([]byte, PageSize)
	pattern(b, seed)
	return b
}

func TestSaveFromASparseFile(t *testing.T) {
	t.Parallel()
	const pages = 1000
	f := sparse(t, pages, func(write func(int, uint64)) {
		write(0, 1)
		write(700, 2)
		write(999, 3)
		write(300, 0)
	})
	dst := filepath.Join(t.TempDir(), "mem")
	info, err := SaveFrom(t.Context(), f, dst)
	require.NoError(t, err)
	require.Equal(t, int64(3*PageSize), info.Used)
	mem, again, err := Load(t.Context(), dst, pages*PageSize)
	require.NoError(t, err)
	defer func() { _ = mem.Close() }()
	require.Equal(t, info, again)
	saved, err := ReadInfo(dst, pages*PageSize)
	require.NoError(t, err)
	require.Equal(t, info, saved)
	got := make([]byte, PageSize)
	_, err = mem.ReadAt(got, 700*PageSize)
	require.NoError(t, err)
	require.Equal(t, pageOf(2), got)

	pipe, w, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = pipe.Close(); _ = w.Close() }()
	_, err = SaveFrom(t.Context(), pipe, dst)
	require.ErrorContains(t, err, "not a regular file")
}

func TestCaptureDirtyOverATemplate(t *testing.T) {
	t.Parallel()
	const pages = 5000
	base := Hash{Lo: 1}
	dir := t.TempDir()
	first := sparse(t, pages, func(write func(int, uint64)) {
		for n := range 600 {
			write(100+n, uint64(1+n))
		}
		write(0, 0)
		write(4999, 9)
	})
	m1, stats, err := CaptureDirty(t.Context(), first, base, nil, dir, true)
	require.NoError(t, err)
	require.Equal(t, base, m1.Template())
	require.Equal(t, 602, stats.Private)
	require.Equal(t, 601, stats.Written)
	require.Equal(t, 1, stats.Zero)
	require.Equal(t, Page{Kind: Zero}, m1.At(0), "a written zero is not unchanged")
	require.Equal(t, Page{}, m1.At(1))

	second := sparse(t, pages, func(write func(int, uint64)) {
		write(100, 1)  // as it was
		write(101, 77) // changed
		write(102, 0)
		write(3000, 5)
		write(4998, 6)
	})
	m2, stats, err := CaptureDirty(t.Context(), second, base, m1, dir, false)
	require.NoError(t, err)
	require.Equal(t, 5, stats.Private)
	require.Equal(t, 3, stats.Written)
	require.Equal(t, 2, stats.Zero)
	require.Equal(t, 601-2, stats.Same)
	require.Equal(t, m1.At(100), m2.At(100))
	require.Equal(t, 1, m2.At(101).Layer)
	require.Equal(t, Page{Kind: Zero}, m2.At(102))
	require.Equal(t, m1.At(103), m2.At(103))
	require.Equal(t, m1.At(4999), m2.At(4999))
	require.Equal(t, Page{}, m2.At(2999))
	again, err := ParseMap(m2.Marshal())
	require.NoError(t, err)
	require.Equal(t, m2, again)

	_, _, err = CaptureDirty(t.Context(), second, Hash{Lo: 2}, m1, dir, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	small := sparse(t, 10, func(func(int, uint64)) {})
	_, _, err = CaptureDirty(t.Context(), small, base, m1, dir, false)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = CaptureDirty(ctx, second, base, m1, dir, false)
	require.ErrorIs(t, err, context.Canceled)
	require.NotContains(t, leftovers(t, dir), ".tmp")
}

// A map of a VM that booted says of every page what it is.
func TestCaptureDirtyWithoutATemplate(t *testing.T) {
	t.Parallel()
	const pages = 2000
	dir := t.TempDir()
	f := sparse(t, pages, func(write func(int, uint64)) { write(5, 1); write(6, 0); write(1000, 2) })
	m, stats, err := CaptureDirty(t.Context(), f, Hash{}, nil, dir, false)
	require.NoError(t, err)
	require.Equal(t, pages, m.DataPages()+m.ZeroPages())
	require.Equal(t, 2, stats.Written)
	layers, err := OpenLayers(m, []string{filepath.Join(dir, m.LayerName(0))})
	require.NoError(t, err)
	defer func() { _ = layers.Close() }()
	s, err := OpenSource(nil, pages*PageSize, m, layers)
	require.NoError(t, err)
	want := make([]byte, pages*PageSize)
	_, err = f.ReadAt(want, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, readAll(t, s)))
	require.NoError(t, s.Close())
}

// readAll reads a source as uffd does.
func readAll(t testing.TB, s *Source) []byte {
	out := make([]byte, int(s.Pages())*PageSize)
	buf := make([]byte, 64*PageSize)
	for n := uint32(0); n < s.Pages(); {
		zero, count := s.Run(n, 64)
		require.Positive(t, count)
		if !zero {
			data, err := s.Read(buf, n, count)
			require.NoError(t, err)
			copy(out[int(n)*PageSize:], data)
		}
		n += count
	}
	return out
}

func TestSourceIsWhatApplyWrites(t *testing.T) {
	t.Parallel()
	const pages = 3000
	tmpl := template(t, pages)
	dir := t.TempDir()
	path := filepath.Join(dir, "base")
	info, err := Save(t.Context(), tmpl, path)
	require.NoError(t, err)
	s := newSaved(t)
	for gen := range 3 {
		f := sparse(t, pages, func(write func(int, uint64)) {
			for n := gen * 400; n < gen*400+700; n += 1 + n%3 {
				write(n, uint64(n%5*(gen+1)))
			}
		})
		mp, _, err := CaptureDirty(t.Context(), f, info.ID, s.mp, s.dir, false)
		require.NoError(t, err)
		s.layers = append(s.layers, filepath.Join(s.dir, mp.LayerName(gen)))
		s.publish(mp)
	}
	v := startVMM(t, tmpl)
	s.apply(v)
	base, err := os.Open(path)
	require.NoError(t, err)
	defer func() { _ = base.Close() }()
	layers, err := OpenLayers(s.mp, s.layers)
	require.NoError(t, err)
	defer func() { _ = layers.Close() }()
	source, err := OpenSource(base, pages*PageSize, s.mp, layers)
	require.NoError(t, err)
	v.sameAs(readAll(t, source))
	require.NoError(t, source.Close())

	_, err = OpenSource(nil, pages*PageSize, s.mp, layers)
	require.True(t, fault.Is(err, fault.FailedPrecondition), "%v", err)
	_, err = OpenSource(base, 2*pages*PageSize, s.mp, layers)
	require.Error(t, err)
}

func TestVerifyReadsAFileOnce(t *testing.T) {
	t.Parallel()
	const pages = 2048
	path := filepath.Join(t.TempDir(), "mem")
	info, err := Save(t.Context(), template(t, pages), path)
	require.NoError(t, err)
	got, err := Verify(t.Context(), path, pages*PageSize)
	require.NoError(t, err)
	require.Equal(t, info, got)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Link(path, path+".link")) // every start does
	damage := func(page int64) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("x"), page*PageSize)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	damage(pages / 2) // a page that is zero, in the table
	require.NoError(t, os.Chtimes(path, st.ModTime(), st.ModTime()))
	_, err = Verify(t.Context(), path+".link", pages*PageSize)
	require.NoError(t, err, "it is not read again")
	damage(pages/2 + 1)
	for range 2 {
		_, err = Verify(t.Context(), path, pages*PageSize)
		require.True(t, fault.Is(err, fault.DataLoss), "%v", err)
	}
}
