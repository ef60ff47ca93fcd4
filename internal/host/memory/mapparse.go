package memory

import (
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// mapSize checks a header and returns the size of the whole file. fault.FailedPrecondition: the
// header is of no version that this build knows.
func mapSize(b []byte) (int64, error) {
	if string(b[:8]) != mapMagic {
		return 0, damaged("not a memory map")
	}
	perLayer := int64(layerRecord)
	switch v := le.Uint32(b[8:]); v {
	case mapVersion:
	case mapVersion1:
		perLayer = layerRecordV1
	default:
		return 0, fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("format version %d, this build reads up to %d", v, mapVersion)).
			WithHint("resume it with the Roost that paused it, or a newer one")
	}
	if size := le.Uint32(b[12:]); size != PageSize {
		return 0, damaged("page size %d", size)
	}
	pages, layers, extents, hashes := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:]), le.Uint32(b[28:])
	if pages == 0 || int64(pages)*PageSize > maxBytes || layers > MaxLayers || extents > pages || hashes > pages {
		return 0, damaged("impossible counts: %d pages, %d layers, %d extents, %d hashes", pages, layers, extents, hashes)
	}
	return mapHeader + perLayer*int64(layers) + extentRecord*int64(extents) + hashRecord*int64(hashes) + sumRecord, nil
}

// ParseMap reads the bytes of a map's file and checks all of it. The checksum comes first: it is
// the last thing in every version, so a damaged version number is known from a new one.
func ParseMap(b []byte) (*Map, error) {
	if len(b) < mapHeader+sumRecord {
		return nil, damaged("too short")
	}
	body := b[:len(b)-sumRecord]
	if hashAt(b[len(body):]) != xxh3.Hash128(body) {
		return nil, damaged("checksum does not match")
	}
	size, err := mapSize(b)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != size {
		return nil, damaged("%d bytes long, its header says %d", len(b), size)
	}
	for _, c := range b[48:mapHeader] {
		if c != 0 {
			return nil, damaged("reserved bytes are set")
		}
	}
	p := mapParser{v1: le.Uint32(b[8:]) == mapVersion1, rest: body[mapHeader:]}
	p.m.pages, p.m.template = le.Uint32(b[16:]), hashAt(b[32:])
	if err := p.layers(int(le.Uint32(b[20:]))); err != nil {
		return nil, err
	}
	if err := p.extents(int(le.Uint32(b[24:])), int(le.Uint32(b[28:]))); err != nil {
		return nil, err
	}
	p.hashes()
	return &p.m, nil
}

// mapParser reads what follows the header, whose counts are those of the bytes that there are.
type mapParser struct {
	m    Map
	v1   bool
	rest []byte
}

func (p *mapParser) layers(n int) error {
	for i := range n {
		l := layer{}
		pages := le.Uint64(p.rest)
		// A layer holds each page at most once.
		if pages > uint64(p.m.pages) {
			return damaged("layer %d has %d pages, the memory %d", i, pages, p.m.pages)
		}
		l.pages, p.rest = uint32(pages), p.rest[layerRecordV1:]
		if !p.v1 {
			l.id, p.rest = hashAt(p.rest), p.rest[hashRecord:]
		}
		p.m.layers = append(p.m.layers, l)
	}
	return nil
}

func (p *mapParser) extents(n, hashes int) error {
	if n > 0 {
		p.m.extents = make([]Extent, 0, n)
	}
	var next uint64
	first := 0
	last := Kind(0)
	for range n {
		r := p.rest
		e := Extent{
			Start: le.Uint32(r), Count: le.Uint32(r[4:]), Index: le.Uint32(r[8:]),
			Layer: le.Uint16(r[12:]), Kind: Kind(le.Uint16(r[14:])),
		}
		p.rest = p.rest[extentRecord:]
		if err := p.check(e, next, last); err != nil {
			return err
		}
		next, last = uint64(e.Start)+uint64(e.Count), e.Kind
		if e.Kind == unchanged {
			continue
		}
		if e.Kind == Data {
			e.first = first
			first += int(e.Count)
		}
		p.m.extents = append(p.m.extents, e)
	}
	if first != hashes {
		return damaged("%d pages of data but %d hashes", first, hashes)
	}
	if !p.v1 && next != uint64(p.m.pages) {
		return damaged("it describes %d of %d pages", next, p.m.pages)
	}
	return nil
}

// check refuses an extent that is empty, unsorted, overlapping or out of bounds, and since
// version 2 one that leaves out pages. There is one way to write a map.
func (p *mapParser) check(e Extent, next uint64, last Kind) error {
	end := uint64(e.Start) + uint64(e.Count)
	plain := e.Layer == 0 && e.Index == 0
	switch {
	case e.Count == 0 || uint64(e.Start) < next || end > uint64(p.m.pages):
		return damaged("extent of pages %d+%d out of order or out of bounds", e.Start, e.Count)
	case !p.v1 && uint64(e.Start) != next:
		return damaged("pages from %d to %d are not described", next, e.Start)
	case e.Kind == Zero && plain:
		return nil
	case e.Kind == unchanged && plain && !p.v1 && last != unchanged:
		return nil
	case e.Kind != Data:
		return damaged("extent of kind %d", e.Kind)
	case int(e.Layer) >= len(p.m.layers), uint64(e.Index)+uint64(e.Count) > uint64(p.m.layers[e.Layer].pages):
		return damaged("extent refers to pages %d+%d of layer %d, which has fewer", e.Index, e.Count, e.Layer)
	}
	return nil
}

func (p *mapParser) hashes() {
	p.m.hashes = make([]Hash, 0, len(p.rest)/hashRecord)
	for ; len(p.rest) > 0; p.rest = p.rest[hashRecord:] {
		p.m.hashes = append(p.m.hashes, hashAt(p.rest))
	}
}
