package memory

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// Merge writes all pages that a map refers to into one new layer in dir and returns the map of
// that layer alone, which is the caller's to write; LayerName(0) is the file. Each page and layer
// is checked. The old layers are untouched; the new one is synced and published by rename.
func Merge(ctx context.Context, mp *Map, layers []io.ReaderAt, dir string) (*Map, Stats, error) {
	out := merger{builder: builder{m: Map{pages: mp.pages, template: mp.template}}, id: newLayerID()}
	var stats Stats
	_, err := publishIn(dir, filepath.Join(dir, "merged"), func(f *os.File) (_ string, err error) {
		stats, err = mp.walkChecked(ctx, layers, func(b []byte, start uint32) error {
			_, err := f.Write(out.addAll(b, start))
			return err
		})
		out.m.layers = []layer{{pages: out.index, id: out.id.id()}}
		return out.m.LayerName(0), err
	})
	if err != nil {
		return nil, stats, fault.Wrap(err, "merge memory layers in", dir)
	}
	stats.Bytes = out.m.LayerBytes(0)
	return &out.m, stats, nil
}

// merger builds the map of one layer.
type merger struct {
	builder
	id    layerID
	index uint32
}

// addAll adds a run of pages to the map and returns those that belong into the layer, moved
// to the front of b. A page of data is never all zero, so content alone tells the kinds apart.
func (b *merger) addAll(pages []byte, start uint32) []byte {
	kept := 0
	for i := range len(pages) / PageSize {
		page := pages[i*PageSize : (i+1)*PageSize]
		if bytes.Equal(page, zeroPage[:]) {
			b.add(start+uint32(i), Page{Kind: Zero})
			continue
		}
		h := xxh3.Hash128(page)
		b.add(start+uint32(i), Page{Data, 0, int64(b.index), h})
		b.id.add(h)
		copy(pages[kept*PageSize:], page)
		kept++
		b.index++
	}
	return pages[:kept*PageSize]
}
