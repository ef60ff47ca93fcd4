package memory

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/fault"
)

// Apply writes saved pages into the private mapping of a VM that has not run yet. layers are
// the map's, oldest first. Each page is checked against its hash before it is written, and each
// layer against its id; damage is fault.DataLoss, and on any error the VM must be ended.
func Apply(ctx context.Context, m Mapping, mp *Map, layers []io.ReaderAt) (Stats, error) {
	stats, err := apply(ctx, m, mp, layers)
	return stats, fault.Wrap(err, "apply saved memory to", m.String())
}

func apply(ctx context.Context, m Mapping, mp *Map, layers []io.ReaderAt) (Stats, error) {
	if err := mp.fits(m); err != nil {
		return Stats{}, err
	}
	p, err := openProcess(m, os.O_RDWR)
	if err != nil {
		return Stats{}, err
	}
	defer p.close()
	start := time.Now()
	stats, err := mp.walkChecked(ctx, layers, p.write)
	stats.Bytes = int64(stats.Written+stats.Zero) * PageSize
	stats.Copy = time.Since(start)
	return stats, err
}

// walkChecked is walk, and checks the layers' ids beside it. Nothing of it may be used on an error.
func (m *Map) walkChecked(ctx context.Context, layers []io.ReaderAt, put func(pages []byte, start uint32) error) (stats Stats, err error) {
	if len(layers) != len(m.layers) {
		return stats, damaged("%d layers given, the map has %d", len(layers), len(m.layers))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.checkIDs(ctx, layers) })
	g.Go(func() (err error) {
		stats, err = m.walk(ctx, layers, put)
		return err
	})
	err = g.Wait()
	return stats, err
}

// walk gives every saved page to put, in ascending order, checked, in runs of adjacent pages
// of at most batchPages. Zero pages are given as zeros.
func (m *Map) walk(ctx context.Context, layers []io.ReaderAt, put func(pages []byte, start uint32) error) (Stats, error) {
	var stats Stats
	buf := make([]byte, 0, batchPages*PageSize)
	var start uint32
	flush := func() error {
		if err := ctx.Err(); err != nil || len(buf) == 0 {
			return err
		}
		err := put(buf, start)
		buf = buf[:0]
		return err
	}
	for _, e := range m.extents {
		for off := uint32(0); off < e.Count; {
			at := e.Start + off
			if len(buf) == cap(buf) || at != start+uint32(len(buf)/PageSize) {
				if err := flush(); err != nil {
					return stats, err
				}
				start = at
			}
			n := min(e.Count-off, uint32((cap(buf)-len(buf))/PageSize))
			buf = buf[:len(buf)+int(n)*PageSize]
			if err := m.fill(buf[len(buf)-int(n)*PageSize:], e, off, layers); err != nil {
				return stats, err
			}
			stats.count(e.Kind, int(n))
			off += n
		}
	}
	return stats, flush()
}

func (s *Stats) count(k Kind, pages int) {
	if k == Zero {
		s.Zero += pages
		return
	}
	s.Written += pages
}

// fill reads part of an extent into b, from page off of it on, and checks it.
func (m *Map) fill(b []byte, e Extent, off uint32, layers []io.ReaderAt) error {
	if e.Kind == Zero {
		clear(b)
		return nil
	}
	index := e.Index + off
	if n, err := layers[e.Layer].ReadAt(b, int64(index)*PageSize); n < len(b) {
		return damaged("layer %d page %d cannot be read: %v", e.Layer, int(index)+n/PageSize, err)
	}
	for i := range len(b) / PageSize {
		if xxh3.Hash128(b[i*PageSize:(i+1)*PageSize]) != m.hashes[e.first+int(off)+i] {
			return damaged("layer %d page %d (memory page %d) does not match its hash", e.Layer, int(index)+i, int(e.Start+off)+i)
		}
	}
	return nil
}
