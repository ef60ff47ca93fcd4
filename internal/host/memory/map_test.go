package memory

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/zeebo/xxh3"
)

// sampleMap has all kinds of extents.
func sampleMap() *Map {
	b := builder{m: Map{pages: 1000, template: Hash{Lo: 1, Hi: 2}, layers: []uint32{10, 20}}}
	for i := range uint32(5) {
		b.add(i, Page{Data, 0, int64(i), Hash{Lo: uint64(i)}})
	}
	b.add(5, Page{Data, 1, 3, Hash{Lo: 99}})
	for i := range uint32(90) {
		b.add(100+i, Page{Kind: Zero})
	}
	b.add(999, Page{Data, 1, 19, Hash{Hi: 7}})
	return &b.m
}

func TestMapRoundTrip(t *testing.T) {
	t.Parallel()
	m := sampleMap()
	path := filepath.Join(t.TempDir(), "map")
	require.NoError(t, WriteMap(path, m))
	got, err := ReadMap(path)
	require.NoError(t, err)
	require.Equal(t, m, got)
	require.Equal(t, 90, got.ZeroPages())
	require.Equal(t, 7, got.DataPages())
	require.Len(t, got.Extents(), 4)
	require.Equal(t, Page{Data, 1, 19, Hash{Hi: 7}}, got.At(999))
	require.Equal(t, "layer 0 page 4", got.At(4).String())
	require.Equal(t, "zero", got.At(189).String())
	require.Equal(t, "unchanged", got.At(190).String())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode())
}

func TestEmptyMapRoundTrip(t *testing.T) {
	t.Parallel()
	m := &Map{pages: 1}
	got, err := ParseMap(m.Marshal())
	require.NoError(t, err)
	require.Equal(t, m.Marshal(), got.Marshal())
	require.Equal(t, Page{}, got.At(0))
}

func TestDamagedMapsAreRefused(t *testing.T) {
	t.Parallel()
	clean := sampleMap().Marshal()
	r := rand.New(rand.NewPCG(1, 1))
	path := filepath.Join(t.TempDir(), "map")
	for range 1000 {
		bad := append([]byte(nil), clean...)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		_, err := ReadMap(path)
		require.Error(t, err)
	}
	for n := range clean {
		_, err := ParseMap(clean[:n])
		require.Error(t, err)
	}
	_, err := ParseMap(append(clean, 0))
	require.Error(t, err)
}

// A map whose checksum is right but whose content is impossible: its writer was wrong.
func TestImpossibleMapsAreRefused(t *testing.T) {
	t.Parallel()
	extent := mapHeader + 2*layerRecord
	for name, edit := range map[string]func(b []byte){
		"overlap":            func(b []byte) { le.PutUint32(b[extent+extentRecord:], 4) },
		"out of bounds":      func(b []byte) { le.PutUint32(b[extent+2*extentRecord+4:], 1<<31) },
		"count wraps":        func(b []byte) { le.PutUint32(b[extent+3*extentRecord+4:], 1<<32-1) },
		"empty":              func(b []byte) { le.PutUint32(b[extent+4:], 0) },
		"no such layer":      func(b []byte) { le.PutUint16(b[extent+12:], 2) },
		"past the layer":     func(b []byte) { le.PutUint32(b[extent+8:], 6) },
		"index wraps":        func(b []byte) { le.PutUint32(b[extent+8:], 1<<32-1) },
		"unknown kind":       func(b []byte) { le.PutUint16(b[extent+14:], 3) },
		"hashes too many":    func(b []byte) { le.PutUint32(b[extent+4:], 4) },
		"zero with a layer":  func(b []byte) { le.PutUint16(b[extent+2*extentRecord+12:], 1) },
		"layer too big":      func(b []byte) { le.PutUint64(b[mapHeader:], 1001) },
		"reserved":           func(b []byte) { b[60] = 1 },
		"page size":          func(b []byte) { le.PutUint32(b[12:], 8192) },
		"version":            func(b []byte) { le.PutUint32(b[8:], 2) },
		"no pages":           func(b []byte) { le.PutUint32(b[16:], 0) },
		"too many layers":    func(b []byte) { le.PutUint32(b[20:], 9) },
		"extents and hashes": func(b []byte) { le.PutUint32(b[24:], 1<<32-1); le.PutUint32(b[28:], 1<<32-1) },
	} {
		b := sampleMap().Marshal()
		edit(b)
		sum := len(b) - sumRecord
		appendHash(b[:sum], xxh3.Hash128(b[:sum]))
		_, err := ParseMap(b)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "checksum", name)
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add(sampleMap().Marshal(), false)
	f.Add((&Map{pages: 3}).Marshal(), true)
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		if sum := len(b) - sumRecord; sign && sum >= 0 {
			appendHash(b[:sum], xxh3.Hash128(b[:sum])) // past the checksum, to the structure
		}
		m, err := ParseMap(b)
		if err != nil {
			return
		}
		require.Equal(t, b, m.Marshal())
		for _, e := range m.Extents() {
			_ = m.At(int64(e.Start))
		}
		require.LessOrEqual(t, m.DataPages()*PageSize, int(m.Bytes()))
	})
}
