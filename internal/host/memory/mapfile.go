package memory

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// The file of a map; docs/formats.md describes it.
const (
	mapMagic     = "ROOSTMAP"
	mapVersion   = 1
	mapHeader    = 64
	layerRecord  = 8
	extentRecord = 16
	hashRecord   = 16
	sumRecord    = 16
)

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
	data, err := readMapFile(f)
	if err != nil {
		return nil, fault.Wrap(err, "read memory map", path)
	}
	m, err := ParseMap(data)
	return m, fault.Wrap(err, "read memory map", path)
}

// readMapFile reads at most what the header says, so that a huge file costs nothing.
func readMapFile(f *os.File) ([]byte, error) {
	var head [mapHeader]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return nil, damaged("too short: %v", err)
	}
	size, err := mapSize(head[:])
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != size {
		return nil, damaged("%d bytes long, its header says %d", info.Size(), size)
	}
	data := make([]byte, size)
	copy(data, head[:])
	_, err = io.ReadFull(f, data[mapHeader:])
	return data, err
}

func damaged(format string, args ...any) error {
	return fault.New(fault.Internal, "", "", "damaged: "+fmt.Sprintf(format, args...)).
		WithHint("this saved memory cannot be used; start the sandbox from its disk")
}

// Marshal returns the bytes of the map's file.
func (m *Map) Marshal() []byte {
	size := mapHeader + layerRecord*len(m.layers) + extentRecord*len(m.extents) + hashRecord*len(m.hashes) + sumRecord
	b := make([]byte, 0, size)
	b = append(b, mapMagic...)
	b = le.AppendUint32(b, mapVersion)
	b = le.AppendUint32(b, PageSize)
	b = le.AppendUint32(b, m.pages)
	b = le.AppendUint32(b, uint32(len(m.layers)))
	b = le.AppendUint32(b, uint32(len(m.extents)))
	b = le.AppendUint32(b, uint32(len(m.hashes)))
	b = appendHash(b, m.template)
	b = append(b, make([]byte, mapHeader-len(b))...)
	for _, pages := range m.layers {
		b = le.AppendUint64(b, uint64(pages))
	}
	for _, e := range m.extents {
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

func appendHash(b []byte, h Hash) []byte {
	return le.AppendUint64(le.AppendUint64(b, h.Lo), h.Hi)
}

func hashAt(b []byte) Hash { return Hash{Lo: le.Uint64(b), Hi: le.Uint64(b[8:])} }

// mapSize checks a header and returns the size of the whole file.
func mapSize(b []byte) (int64, error) {
	if string(b[:8]) != mapMagic {
		return 0, damaged("not a memory map")
	}
	if v := le.Uint32(b[8:]); v != mapVersion {
		return 0, fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("format version %d, this build reads %d", v, mapVersion))
	}
	if size := le.Uint32(b[12:]); size != PageSize {
		return 0, damaged("page size %d", size)
	}
	pages, layers, extents, hashes := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:]), le.Uint32(b[28:])
	if pages == 0 || int64(pages)*PageSize > maxBytes || layers > MaxLayers || extents > pages || hashes > pages {
		return 0, damaged("impossible counts: %d pages, %d layers, %d extents, %d hashes", pages, layers, extents, hashes)
	}
	return mapHeader + layerRecord*int64(layers) + extentRecord*int64(extents) + hashRecord*int64(hashes) + sumRecord, nil
}

// ParseMap reads the bytes of a map's file and checks all of it.
func ParseMap(b []byte) (*Map, error) {
	if len(b) < mapHeader {
		return nil, damaged("too short")
	}
	size, err := mapSize(b)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != size {
		return nil, damaged("%d bytes long, its header says %d", len(b), size)
	}
	body := b[:size-sumRecord]
	if hashAt(b[size-sumRecord:]) != xxh3.Hash128(body) {
		return nil, damaged("checksum does not match")
	}
	for _, c := range b[48:mapHeader] {
		if c != 0 {
			return nil, damaged("reserved bytes are set")
		}
	}
	m := &Map{pages: le.Uint32(b[16:]), template: hashAt(b[32:])}
	rest := body[mapHeader:]
	if rest, err = m.parseLayers(rest, int(le.Uint32(b[20:]))); err != nil {
		return nil, err
	}
	if rest, err = m.parseExtents(rest, int(le.Uint32(b[24:])), int(le.Uint32(b[28:]))); err != nil {
		return nil, err
	}
	m.hashes = make([]Hash, 0, len(rest)/hashRecord)
	for ; len(rest) > 0; rest = rest[hashRecord:] {
		m.hashes = append(m.hashes, hashAt(rest))
	}
	return m, nil
}

func (m *Map) parseLayers(b []byte, n int) ([]byte, error) {
	for i := range n {
		pages := le.Uint64(b[i*layerRecord:])
		// A layer holds each page at most once.
		if pages > uint64(m.pages) {
			return nil, damaged("layer %d has %d pages, the memory %d", i, pages, m.pages)
		}
		m.layers = append(m.layers, uint32(pages))
	}
	return b[n*layerRecord:], nil
}

func (m *Map) parseExtents(b []byte, n, hashes int) ([]byte, error) {
	m.extents = make([]Extent, 0, n)
	var next uint64
	first := 0
	for i := range n {
		r := b[i*extentRecord:]
		e := Extent{
			Start: le.Uint32(r), Count: le.Uint32(r[4:]), Index: le.Uint32(r[8:]),
			Layer: le.Uint16(r[12:]), Kind: Kind(le.Uint16(r[14:])),
		}
		if err := m.checkExtent(e, next); err != nil {
			return nil, err
		}
		next = uint64(e.Start) + uint64(e.Count)
		if e.Kind == Data {
			e.first = first
			first += int(e.Count)
		}
		m.extents = append(m.extents, e)
	}
	if first != hashes {
		return nil, damaged("%d pages of data but %d hashes", first, hashes)
	}
	return b[n*extentRecord:], nil
}

// checkExtent refuses an extent that is empty, unsorted, overlapping or out of bounds.
func (m *Map) checkExtent(e Extent, next uint64) error {
	end := uint64(e.Start) + uint64(e.Count)
	switch {
	case e.Count == 0 || uint64(e.Start) < next || end > uint64(m.pages):
		return damaged("extent of pages %d+%d out of order or out of bounds", e.Start, e.Count)
	case e.Kind == Zero && e.Layer == 0 && e.Index == 0:
		return nil
	case e.Kind != Data:
		return damaged("extent of kind %d", e.Kind)
	case int(e.Layer) >= len(m.layers), uint64(e.Index)+uint64(e.Count) > uint64(m.layers[e.Layer]):
		return damaged("extent refers to pages %d+%d of layer %d, which has fewer", e.Index, e.Count, e.Layer)
	}
	return nil
}
