package memory

import (
	"bytes"
	"context"
	"io"
	"os"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// Merge writes all pages that a map refers to into one new layer at dst and returns the map
// of that layer alone. Each page is checked. The old layers are untouched; dst is published
// by rename, the map is the caller's to write.
func Merge(ctx context.Context, mp *Map, layers []io.ReaderAt, dst string) (*Map, Stats, error) {
	out := builder{m: Map{pages: mp.pages, template: mp.template, layers: []uint32{0}}}
	var stats Stats
	index := int64(0)
	err := publish(dst, func(f *os.File) (err error) {
		stats, err = mp.walk(ctx, layers, func(b []byte, start uint32) error {
			data := out.addAll(b, start, &index)
			_, err := f.Write(data)
			return err
		})
		return err
	})
	if err != nil {
		return nil, stats, fault.Wrap(err, "merge memory layers into", dst)
	}
	out.m.layers[0] = uint32(index)
	stats.Bytes = index * PageSize
	return &out.m, stats, nil
}

// addAll adds a run of pages to the map and returns those that belong into the layer, moved
// to the front of b. A page of data is never all zero, so content alone tells the kinds apart.
func (b *builder) addAll(pages []byte, start uint32, index *int64) []byte {
	kept := 0
	for i := range len(pages) / PageSize {
		page := pages[i*PageSize : (i+1)*PageSize]
		if bytes.Equal(page, zeroPage[:]) {
			b.add(start+uint32(i), Page{Kind: Zero})
			continue
		}
		b.add(start+uint32(i), Page{Data, 0, *index, xxh3.Hash128(page)})
		copy(pages[kept*PageSize:], page)
		kept++
		*index++
	}
	return pages[:kept*PageSize]
}
