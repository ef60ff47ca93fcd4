package memory

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// sampleMap has all kinds of extents.
func sampleMap() *Map {
	b := builder{m: Map{pages: 1000, template: Hash{Lo: 1, Hi: 2}, layers: []layer{{pages: 10, id: Hash{Lo: 3}}, {pages: 20, id: Hash{Hi: 4}}}}}
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

// version1 is a map as the first version wrote it.
func version1(m *Map) []byte {
	b := append([]byte(mapMagic), 1, 0, 0, 0)
	b = le.AppendUint32(b, PageSize)
	for _, n := range []int{int(m.pages), len(m.layers), len(m.extents), len(m.hashes)} {
		b = le.AppendUint32(b, uint32(n))
	}
	b = append(appendHash(b, m.template), make([]byte, 16)...)
	for _, l := range m.layers {
		b = le.AppendUint64(b, uint64(l.pages))
	}
	for _, e := range m.extents {
		for _, n := range []uint32{e.Start, e.Count, e.Index} {
			b = le.AppendUint32(b, n)
		}
		b = le.AppendUint16(le.AppendUint16(b, e.Layer), uint16(e.Kind))
	}
	for _, h := range m.hashes {
		b = appendHash(b, h)
	}
	return appendHash(b, xxh3.Hash128(b))
}

func TestVersion1IsRead(t *testing.T) {
	t.Parallel()
	want := sampleMap()
	for i := range want.layers {
		want.layers[i].id = Hash{}
	}
	path := filepath.Join(t.TempDir(), "map")
	require.NoError(t, os.WriteFile(path, version1(want), 0o600))
	got, err := ReadMap(path)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Empty(t, got.LayerName(0))
	again, err := ParseMap(got.Marshal())
	require.NoError(t, err)
	require.Equal(t, want, again, "in the newest version it says the same")
}

// A map of a later version is not damaged, and a damaged one is not of a later version.
func TestVersionsAndDamage(t *testing.T) {
	t.Parallel()
	b := sampleMap().Marshal()
	le.PutUint32(b[8:], 3)
	path := filepath.Join(t.TempDir(), "map")
	read := func() error {
		require.NoError(t, os.WriteFile(path, b, 0o600))
		_, err := ReadMap(path)
		_, parsed := ParseMap(b)
		require.Equal(t, fault.KindOf(err), fault.KindOf(parsed), "%v, %v", err, parsed)
		return err
	}
	err := read()
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	require.Contains(t, fault.HintOf(err), "roost resume --cold ID")
	sum := len(b) - sumRecord
	appendHash(b[:sum], xxh3.Hash128(b[:sum]))
	err = read()
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "format version 3")
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
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	}
	for n := range clean {
		_, err := ParseMap(clean[:n])
		require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
	}
	_, err := ParseMap(append(clean, 0))
	require.Equal(t, fault.DataLoss, fault.KindOf(err), "%v", err)
}

// A map whose checksum is right but whose content is impossible: its writer was wrong.
func TestImpossibleMapsAreRefused(t *testing.T) {
	t.Parallel()
	extent := mapHeader + 2*layerRecord
	for name, edit := range map[string]func(b []byte){
		"overlap":            func(b []byte) { le.PutUint32(b[extent+extentRecord:], 4) },
		"gap":                func(b []byte) { le.PutUint32(b[extent+extentRecord:], 6) },
		"gap at the end":     func(b []byte) { le.PutUint32(b[16:], 1001) },
		"out of bounds":      func(b []byte) { le.PutUint32(b[extent+3*extentRecord+4:], 1<<31) },
		"count wraps":        func(b []byte) { le.PutUint32(b[extent+5*extentRecord+4:], 1<<32-1) },
		"empty":              func(b []byte) { le.PutUint32(b[extent+4:], 0) },
		"no such layer":      func(b []byte) { le.PutUint16(b[extent+12:], 2) },
		"past the layer":     func(b []byte) { le.PutUint32(b[extent+8:], 6) },
		"index wraps":        func(b []byte) { le.PutUint32(b[extent+8:], 1<<32-1) },
		"unknown kind":       func(b []byte) { le.PutUint16(b[extent+14:], 4) },
		"kind 0":             func(b []byte) { le.PutUint16(b[extent+2*extentRecord+14:], 0) },
		"unchanged twice":    func(b []byte) { le.PutUint16(b[extent+3*extentRecord+14:], 3) },
		"hashes too many":    func(b []byte) { le.PutUint16(b[extent+14:], 1); le.PutUint32(b[extent+8:], 0) },
		"zero with a layer":  func(b []byte) { le.PutUint16(b[extent+3*extentRecord+12:], 1) },
		"unchanged with one": func(b []byte) { le.PutUint16(b[extent+2*extentRecord+12:], 1) },
		"layer too big":      func(b []byte) { le.PutUint64(b[mapHeader:], 1001) },
		"reserved":           func(b []byte) { b[60] = 1 },
		"page size":          func(b []byte) { le.PutUint32(b[12:], 8192) },
		"version":            func(b []byte) { le.PutUint32(b[8:], 3) },
		"earlier version":    func(b []byte) { le.PutUint32(b[8:], 1) },
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
