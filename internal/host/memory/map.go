package memory

import (
	"fmt"
	"sort"

	"github.com/zeebo/xxh3"
)

// MaxLayers is how many layers a map may refer to; then it must be merged.
const MaxLayers = 8

// Hash is the XXH3-128 of one page, of the hashes of a layer's pages (the layer's id), or of a
// template's table of chunks.
type Hash = xxh3.Uint128

// Kind says what a page that is not the template's holds.
type Kind uint16

// The kinds of extents. Pages outside of every extent are the template's.
const (
	Zero Kind = 1
	Data Kind = 2
)

// Extent is a run of pages of one kind.
type Extent struct {
	// Start and Count are in pages.
	Start, Count uint32
	// Index is where the run lies in its layer, in pages; Layer counts from 0. Both are 0 for
	// a Zero extent.
	Index uint32
	Layer uint16
	Kind  Kind
	// first is where the run's hashes begin in Map.hashes.
	first int
}

func (e Extent) end() uint32 { return e.Start + e.Count }

// Map says where each page of a sandbox's memory is. It is immutable.
type Map struct {
	// pages is the size of the memory.
	pages    uint32
	template Hash
	layers   []layer
	extents  []Extent
	hashes   []Hash
}

// layer is a file of pages.
type layer struct {
	pages uint32
	// id is made of what the layer holds; zero for one that was written before layers had ids.
	id Hash
}

// Bytes is the size of the memory that the map describes.
func (m *Map) Bytes() int64 { return int64(m.pages) * PageSize }

// Template identifies the template's memory that unchanged pages come from (Info.ID); zero
// when the capture was not told.
func (m *Map) Template() Hash { return m.template }

// Layers is how many layers the map refers to.
func (m *Map) Layers() int { return len(m.layers) }

// LayerBytes is the size that a layer's file must have.
func (m *Map) LayerBytes(layer int) int64 { return int64(m.layers[layer].pages) * PageSize }

// LayerName is how the file of a layer is called; "" for a layer without an id.
func (m *Map) LayerName(layer int) string { return layerName(m.layers[layer].id) }

// DataPages is how many pages lie in layers.
func (m *Map) DataPages() int { return len(m.hashes) }

// ZeroPages is how many pages are saved as zero.
func (m *Map) ZeroPages() int {
	n := 0
	for _, e := range m.extents {
		if e.Kind == Zero {
			n += int(e.Count)
		}
	}
	return n
}

// Extents returns a copy of the map's extents, sorted by Start.
func (m *Map) Extents() []Extent { return append([]Extent(nil), m.extents...) }

// Page is what a map says of one page.
type Page struct {
	Kind  Kind // 0: unchanged
	Layer int
	Index int64
	Hash  Hash
}

// At returns what the map says of page number n.
func (m *Map) At(n int64) Page {
	i := m.find(uint32(n))
	if i == len(m.extents) || n < int64(m.extents[i].Start) {
		return Page{}
	}
	return m.in(m.extents[i], uint32(n))
}

// find is the first extent that ends after page n.
func (m *Map) find(n uint32) int {
	return sort.Search(len(m.extents), func(i int) bool { return m.extents[i].end() > n })
}

func (m *Map) in(e Extent, n uint32) Page {
	if e.Kind == Zero {
		return Page{Kind: Zero}
	}
	off := n - e.Start
	return Page{Data, int(e.Layer), int64(e.Index + off), m.hashes[e.first+int(off)]}
}

// spans are the pages that the map has something to say of.
func (m *Map) spans() []span {
	out := make([]span, 0, len(m.extents))
	for _, e := range m.extents {
		out = append(out, span{e.Start, e.Count})
	}
	return out
}

// cursor answers At for pages asked in ascending order, without a search. A nil map has
// nothing to say.
type cursor struct {
	m *Map
	i int
}

func (c *cursor) at(n uint32) Page {
	if c.m == nil {
		return Page{}
	}
	for c.i < len(c.m.extents) && c.m.extents[c.i].end() <= n {
		c.i++
	}
	if c.i == len(c.m.extents) || n < c.m.extents[c.i].Start {
		return Page{}
	}
	return c.m.in(c.m.extents[c.i], n)
}

// builder makes a map from pages given in ascending order.
type builder struct{ m Map }

func (b *builder) add(n uint32, p Page) {
	if p.Kind == Data {
		b.m.hashes = append(b.m.hashes, p.Hash)
	}
	if i := len(b.m.extents) - 1; i >= 0 && b.m.extents[i].continuedBy(n, p) {
		b.m.extents[i].Count++
		return
	}
	e := Extent{Start: n, Count: 1, Kind: p.Kind}
	if p.Kind == Data {
		e.Layer, e.Index, e.first = uint16(p.Layer), uint32(p.Index), len(b.m.hashes)-1
	}
	b.m.extents = append(b.m.extents, e)
}

func (e Extent) continuedBy(n uint32, p Page) bool {
	if e.Kind != p.Kind || e.end() != n {
		return false
	}
	return p.Kind == Zero || (int(e.Layer) == p.Layer && int64(e.Index)+int64(e.Count) == p.Index)
}

func (p Page) String() string {
	switch p.Kind {
	case Zero:
		return "zero"
	case Data:
		return fmt.Sprintf("layer %d page %d", p.Layer, p.Index)
	default:
		return "unchanged"
	}
}
