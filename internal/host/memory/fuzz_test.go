package memory

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// signed puts the right checksum at the end, so that what is fuzzed gets past it.
func signed(b []byte) []byte {
	b = append([]byte(nil), b...)
	if sum := len(b) - sumRecord; sum >= 0 {
		appendHash(b[:sum], xxh3.Hash128(b[:sum]))
	}
	return b
}

// frugal fails when f allocates much more than what it was given.
func frugal(t *testing.T, given int, f func()) {
	t.Helper()
	const spare = 1 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8*given+spare))
}

// FuzzParseMap: whatever a map's file holds, reading it is an error or a map that is written
// again as it was, within the bounds that it states.
func FuzzParseMap(f *testing.F) {
	f.Add(sampleMap().Marshal(), false)
	f.Add((&Map{pages: 3}).Marshal(), true)
	f.Add(version1(sampleMap()), true)
	huge := sampleMap().Marshal()
	le.PutUint32(huge[24:], 1<<27)
	le.PutUint32(huge[28:], 1<<27)
	le.PutUint32(huge[16:], 1<<28)
	f.Add(huge, true)
	f.Add([]byte(mapMagic), true)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		if sign {
			b = signed(b)
		}
		var m *Map
		var err error
		frugal(t, len(b), func() { m, err = ParseMap(b) })
		path := filepath.Join(dir, "map")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		read, rerr := ReadMap(path)
		require.Equal(t, err == nil, rerr == nil, "%v, %v", err, rerr)
		if err != nil {
			require.Contains(t, []fault.Kind{fault.DataLoss, fault.FailedPrecondition}, fault.KindOf(err), "%v", err)
			require.Equal(t, fault.KindOf(err), fault.KindOf(rerr), "%v, %v", err, rerr)
			return
		}
		require.Equal(t, m, read)
		again := m.Marshal()
		if le.Uint32(b[8:]) == mapVersion {
			require.Equal(t, b, again)
		}
		back, err := ParseMap(again)
		require.NoError(t, err)
		require.Equal(t, m, back)
		checkBounds(t, m)
	})
}

func checkBounds(t *testing.T, m *Map) {
	t.Helper()
	pages := 0
	for _, e := range m.Extents() {
		p := m.At(int64(e.Start))
		require.Equal(t, e.Kind, p.Kind)
		require.Equal(t, p, m.At(int64(e.Start)))
		if e.Kind == Data {
			require.Less(t, p.Index*PageSize, m.LayerBytes(p.Layer))
			pages += int(e.Count)
		}
	}
	require.Equal(t, m.DataPages(), pages)
	require.LessOrEqual(t, pages+m.ZeroPages(), int(m.Bytes()/PageSize))
}

// FuzzParseTable is the same for the table at the end of a template's memory.
func FuzzParseTable(f *testing.F) {
	const size = chunkBytes + 3*PageSize
	t := newTable(size)
	t.chunks[0].set(0)
	t.chunks[0].set(chunkPages - 1)
	t.chunks[0].hash = Hash{Lo: 1}
	t.chunks[1].set(2)
	t.chunks[1].hash = Hash{Hi: 1}
	good, _ := t.marshal()
	f.Add(good, int64(size), false)
	f.Add(good, int64(size), true)
	f.Add(good, int64(2*chunkBytes), true)
	f.Add(good[:10], int64(PageSize), true)
	f.Fuzz(func(t *testing.T, b []byte, bytes int64, sign bool) {
		if checkSize(bytes) != nil {
			return // refused before any table is read
		}
		if sign {
			b = signed(b)
		}
		var got *table
		var id Hash
		var err error
		frugal(t, len(b), func() { got, id, err = parseTable(b, bytes) })
		if err != nil {
			require.Contains(t, []fault.Kind{fault.DataLoss, fault.FailedPrecondition}, fault.KindOf(err), "%v", err)
			return
		}
		again, same := got.marshal()
		require.Equal(t, b, again)
		require.Equal(t, id, same)
		require.LessOrEqual(t, got.usedPages()*PageSize, bytes)
	})
}
