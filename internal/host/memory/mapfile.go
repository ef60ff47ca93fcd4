package memory

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// The file of a map; docs/formats.md describes it. Version 1 had no ids of layers and left out
// what is unchanged.
const (
	mapMagic      = "ROOSTMAP"
	mapVersion    = 2
	mapVersion1   = 1
	mapHeader     = 64
	layerRecord   = 24
	layerRecordV1 = 8
	extentRecord  = 16
	hashRecord    = 16
	sumRecord     = 16
)

// unchanged is the kind of a run of the template's pages, in a file; a Map leaves them out.
const unchanged Kind = 3

var le = binary.LittleEndian

// WriteMap publishes a map at path: synced, then renamed into place.
func WriteMap(path string, m *Map) error {
	data := m.Marshal()
	return publish(path, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// ReadMap reads and checks a map. Damage of any kind is an error, never a wrong map.
func ReadMap(path string) (*Map, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, diskError(err, "open memory map", path)
	}
	defer func() { _ = f.Close() }() // only read
	return ReadMapFrom(f)
}

// ReadMapFrom is ReadMap of an open file, which stays the caller's.
func ReadMapFrom(f *os.File) (*Map, error) {
	data, err := readMapFile(f)
	if err != nil {
		return nil, fault.Wrap(err, "read memory map", f.Name())
	}
	m, err := ParseMap(data)
	return m, fault.Wrap(err, "read memory map", f.Name())
}

// readMapFile reads at most what the header says, so that a huge file costs nothing.
func readMapFile(f *os.File) ([]byte, error) {
	var head [mapHeader]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return nil, damaged("too short: %v", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < mapHeader+sumRecord {
		return nil, damaged("too short")
	}
	size, err := mapSize(head[:])
	if fault.Is(err, fault.FailedPrecondition) {
		// Another version, or damage to the version's number: the checksum tells.
		whole, serr := endsInSum(f, info.Size())
		if serr != nil {
			return nil, serr
		}
		if !whole {
			return nil, damaged("checksum does not match")
		}
	}
	if err != nil {
		return nil, err
	}
	if info.Size() != size {
		return nil, damaged("%d bytes long, its header says %d", info.Size(), size)
	}
	data := make([]byte, size)
	_, err = f.ReadAt(data, 0)
	return data, err
}

// endsInSum tells whether a file of any version is whole, without holding it in memory.
func endsInSum(f *os.File, size int64) (bool, error) {
	h := xxh3.New128()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size-sumRecord)); err != nil {
		return false, err
	}
	var sum [sumRecord]byte
	_, err := f.ReadAt(sum[:], size-sumRecord)
	return h.Sum128() == hashAt(sum[:]), err
}

func damaged(format string, args ...any) error {
	return fault.New(fault.DataLoss, "", "", "damaged: "+fmt.Sprintf(format, args...)).
		WithHint("the sandbox's disk is untouched: `roost resume --cold ID` boots from it")
}

// Marshal returns the bytes of the map's file, in the newest version.
func (m *Map) Marshal() []byte {
	all := m.covering()
	size := mapHeader + layerRecord*len(m.layers) + extentRecord*len(all) + hashRecord*len(m.hashes) + sumRecord
	b := make([]byte, 0, size)
	b = append(b, mapMagic...)
	b = le.AppendUint32(b, mapVersion)
	b = le.AppendUint32(b, PageSize)
	b = le.AppendUint32(b, m.pages)
	b = le.AppendUint32(b, uint32(len(m.layers)))
	b = le.AppendUint32(b, uint32(len(all)))
	b = le.AppendUint32(b, uint32(len(m.hashes)))
	b = appendHash(b, m.template)
	b = append(b, make([]byte, mapHeader-len(b))...)
	for _, l := range m.layers {
		b = appendHash(le.AppendUint64(b, uint64(l.pages)), l.id)
	}
	for _, e := range all {
		b = le.AppendUint32(b, e.Start)
		b = le.AppendUint32(b, e.Count)
		b = le.AppendUint32(b, e.Index)
		b = le.AppendUint16(b, e.Layer)
		b = le.AppendUint16(b, uint16(e.Kind))
	}
	for _, h := range m.hashes {
		b = appendHash(b, h)
	}
	return appendHash(b, xxh3.Hash128(b))
}

// covering are the extents with those between them, which are the template's: every page is in
// one, so that none is unchanged for want of a record.
func (m *Map) covering() []Extent {
	var out []Extent
	next := uint32(0)
	for _, e := range m.extents {
		if e.Start > next {
			out = append(out, Extent{Start: next, Count: e.Start - next, Kind: unchanged})
		}
		out = append(out, e)
		next = e.end()
	}
	if next < m.pages {
		out = append(out, Extent{Start: next, Count: m.pages - next, Kind: unchanged})
	}
	return out
}

func appendHash(b []byte, h Hash) []byte {
	return le.AppendUint64(le.AppendUint64(b, h.Lo), h.Hi)
}

func hashAt(b []byte) Hash { return Hash{Lo: le.Uint64(b), Hi: le.Uint64(b[8:])} }
