package memory

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Source answers what a page of a saved memory holds: a template's memory with a map and its
// layers over it. Pages of layers are checked against their hashes whenever they are read; those of
// the template are not, since its whole file was (Verify). Methods may be called at the same time.
type Source struct {
	pages  uint32
	table  *table
	mapped []byte
	m      *Map
	layers []io.ReaderAt
}

// OpenSource maps base (a template's file, nil if the map leaves nothing unchanged) for a memory of
// bytes; m and layers may be nil together, for the template alone. The files stay the caller's and
// must be open until Close. A map that belongs to another template or size is
// fault.FailedPrecondition.
func OpenSource(base *os.File, bytes int64, m *Map, layers *Layers) (*Source, error) {
	if err := checkSize(bytes); err != nil {
		return nil, err
	}
	s := &Source{pages: uint32(bytes / PageSize), m: m}
	if layers != nil {
		s.layers = layers.Readers()
	}
	if m != nil && len(s.layers) != m.Layers() {
		return nil, damaged("%d layers given, the map has %d", len(s.layers), m.Layers())
	}
	id := Hash{}
	if base != nil {
		var err error
		if s.table, id, err = readTable(base, bytes); err != nil {
			return nil, fault.Wrap(err, "open template memory", base.Name())
		}
	}
	if err := s.fits(bytes, id); err != nil {
		return nil, err
	}
	if base == nil {
		return s, nil
	}
	mem, err := unix.Mmap(int(base.Fd()), 0, int(bytes), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fault.Wrap(err, "map template memory", base.Name())
	}
	s.mapped = mem
	return s, nil
}

// fits checks that the map goes with the template, or needs none.
func (s *Source) fits(bytes int64, template Hash) error {
	switch {
	case s.m == nil && s.table == nil:
		return fault.New(fault.Invalid, "open memory", "", "neither a template nor a map")
	case s.m == nil:
		return nil
	case s.table == nil && int(s.pages) != s.m.DataPages()+s.m.ZeroPages():
		return fault.New(fault.FailedPrecondition, "open memory", "", "its map leaves pages to a template that is not given")
	default:
		return s.m.fits(Mapping{Bytes: bytes, Template: template})
	}
}

// Pages is the size of the memory.
func (s *Source) Pages() uint32 { return s.pages }

// Close unmaps the template. No other method may run, or be called again.
func (s *Source) Close() error {
	if s.mapped == nil {
		return nil
	}
	mem := s.mapped
	s.mapped = nil
	return unix.Munmap(mem)
}

// Run is how many pages from n on (at most most) one call of Pages can give, and whether they
// are zero.
func (s *Source) Run(n, most uint32) (zero bool, count uint32) {
	most = min(most, s.pages-n)
	e, left := s.extent(n)
	most = min(most, left)
	if e.Kind != 0 {
		return e.Kind == Zero, most
	}
	zero = !s.table.used(n)
	count = 1
	for count < most && !s.table.used(n+count) == zero {
		count++
	}
	return zero, count
}

// extent finds what the map says of page n, and for how many pages it holds. The kind is 0 for
// the template's.
func (s *Source) extent(n uint32) (e Extent, left uint32) {
	if s.m == nil {
		return Extent{}, s.pages - n
	}
	i := s.m.find(n)
	if i == len(s.m.extents) {
		return Extent{}, s.pages - n
	}
	if e = s.m.extents[i]; n < e.Start {
		return Extent{}, e.Start - n
	}
	return e, e.end() - n
}

func (t *table) used(page uint32) bool { return t.chunks[page/chunkPages].has(int(page % chunkPages)) }

// Read returns the content of count pages from n on, which Run said belong together and are not
// zero: the template's own, mapped, which reads the disk when it is looked at, or buf, filled and
// checked. Damage is fault.DataLoss. What is returned is only for reading.
func (s *Source) Read(buf []byte, n, count uint32) ([]byte, error) {
	e, left := s.extent(n)
	if e.Kind == 0 {
		return s.mapped[int64(n)*PageSize : int64(n+count)*PageSize], nil
	}
	buf = buf[:int(count)*PageSize]
	if e.Kind != Data || count > left {
		return nil, fault.New(fault.Invalid, "read memory page", fmt.Sprint(n), "it does not begin such a run")
	}
	return buf, fault.Wrap(s.m.fill(buf, e, n-e.Start, s.layers), "read memory page", fmt.Sprint(n))
}
