package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/xxh3"
)

// A layer's file is called after what it holds, wherever it lies.
const (
	layerPrefix = "mem-"
	layerSuffix = ".layer"
)

func layerName(id Hash) string {
	if id == (Hash{}) {
		return ""
	}
	return fmt.Sprintf("%s%016x%016x%s", layerPrefix, id.Hi, id.Lo, layerSuffix)
}

// LayerNameIn is the layer's own name in that of a file, before which something may stand; ""
// for the file of a layer without an id.
func LayerNameIn(name string) string {
	const size = len(layerPrefix) + 2*hashRecord + len(layerSuffix)
	own := name[max(0, len(name)-size):]
	if len(own) == size && strings.HasPrefix(own, layerPrefix) && strings.HasSuffix(own, layerSuffix) {
		return own
	}
	return ""
}

// layerID makes a layer's id from the hashes of its pages, in order.
type layerID struct{ h *xxh3.Hasher128 }

func newLayerID() layerID { return layerID{xxh3.New128()} }

func (i layerID) add(page Hash) {
	var b [hashRecord]byte
	_, _ = i.h.Write(appendHash(b[:0], page)) // a hash takes everything
}

func (i layerID) id() Hash { return i.h.Sum128() }

// Layers are the open files of a map's layers, oldest first.
type Layers struct{ files []*os.File }

// OpenLayers opens the layers that a map names. A layer that is not among paths, not there or of
// another size is fault.DataLoss; of one without an id only its place tells which it is. A name
// may have something before the layer's own.
func OpenLayers(m *Map, paths []string) (_ *Layers, err error) {
	l := &Layers{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if len(paths) != len(m.layers) {
		return nil, damaged("the map names %d layers, %d are at hand", len(m.layers), len(paths))
	}
	for i, path := range paths {
		if want := m.LayerName(i); want != "" && want != LayerNameIn(filepath.Base(path)) {
			return nil, damaged("the map's layer %d is %s, at hand is %s", i, want, path)
		}
		if err := l.open(path, m.LayerBytes(i)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *Layers) open(path string, size int64) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return damaged("layer %s is missing", path)
	}
	if err != nil {
		return diskError(err, "open memory layer", path)
	}
	l.files = append(l.files, f)
	return checkLayer(f, size)
}

func checkLayer(f *os.File, size int64) error {
	st, err := f.Stat()
	if err != nil {
		return diskError(err, "open memory layer", f.Name())
	}
	if st.Size() != size {
		return damaged("layer %s is %d bytes long, the map says %d", f.Name(), st.Size(), size)
	}
	return nil
}

// LayersOf makes Layers of files that another process opened with OpenLayers, in the same order.
// They belong to the Layers from now on, also when it fails.
func LayersOf(m *Map, files []*os.File) (*Layers, error) {
	l := &Layers{files}
	if len(files) != len(m.layers) {
		return nil, errors.Join(damaged("the map names %d layers, %d are at hand", len(m.layers), len(files)), l.Close())
	}
	for i, f := range files {
		if err := checkLayer(f, m.LayerBytes(i)); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Files are the open files, which stay the Layers'.
func (l *Layers) Files() []*os.File { return append([]*os.File(nil), l.files...) }

// Readers are the layers as Apply and Merge take them.
func (l *Layers) Readers() []io.ReaderAt {
	out := make([]io.ReaderAt, len(l.files))
	for i, f := range l.files {
		out[i] = f
	}
	return out
}

// Close closes the files.
func (l *Layers) Close() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	l.files = nil
	return errors.Join(errs...)
}

// checkIDs checks that layers are the ones that the map names. The hashes of pages that the map
// uses are its own, which are compared with the content elsewhere; the pages that no longer
// matter are read here: whoever lost some of a layer should know before it is the rest.
func (m *Map) checkIDs(ctx context.Context, layers []io.ReaderAt) error {
	buf := make([]byte, batchPages*PageSize)
	for i := range m.layers {
		if m.layers[i].id == (Hash{}) {
			continue
		}
		if err := m.checkID(ctx, i, layers[i], buf); err != nil {
			return err
		}
	}
	return nil
}

func (m *Map) checkID(ctx context.Context, i int, from io.ReaderAt, buf []byte) error {
	pages := m.usedHashes(i)
	for at := 0; at < len(pages); {
		n := unusedFrom(pages, at, len(buf)/PageSize)
		if n == 0 {
			at++
			continue
		}
		b := buf[:n*PageSize]
		if got, err := from.ReadAt(b, int64(at)*PageSize); got < len(b) {
			return damaged("layer %d page %d cannot be read: %v", i, at+got/PageSize, err)
		}
		for p := range n {
			pages[at+p] = xxh3.Hash128(b[p*PageSize : (p+1)*PageSize])
		}
		at += n
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	id := newLayerID()
	for _, h := range pages {
		id.add(h)
	}
	if id.id() != m.layers[i].id {
		return damaged("layer %d holds other pages than %s", i, m.LayerName(i))
	}
	return nil
}

// usedHashes are the hashes of a layer's pages that the map uses, zero for others.
func (m *Map) usedHashes(i int) []Hash {
	pages := make([]Hash, m.layers[i].pages)
	for _, e := range m.extents {
		if e.Kind == Data && int(e.Layer) == i {
			copy(pages[e.Index:e.Index+e.Count], m.hashes[e.first:e.first+int(e.Count)])
		}
	}
	return pages
}

// unusedFrom counts pages without a hash from at on, up to most.
func unusedFrom(pages []Hash, at, most int) int {
	n := 0
	for n < most && at+n < len(pages) && pages[at+n] == (Hash{}) {
		n++
	}
	return n
}
